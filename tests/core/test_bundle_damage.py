"""Damaged and hostile bundles: whatever is wrong with the file, an InputError says so before harm is done."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from test_bundle import RNG, clustered, tensors

import attar
from attar import bundle
from attar.bundle import codec, streams
from attar.errors import InputError
from attar.testing.build import Net


def rewritten(source: Path, target: Path, change: dict[str, Any]) -> Path:
    """The bundle with entries replaced (bytes), dropped (None) or changed (a function of the manifest)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in dict.fromkeys([*old.namelist(), *change]):
            data = old.read(name) if name in old.namelist() else b""
            if name in change and change[name] is None:
                continue
            if callable(change.get(name)):
                facts = json.loads(data)
                change[name](facts)
                data = json.dumps(facts).encode()
            elif name in change:
                data = change[name]
            new.writestr(name, data)
    return target


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "good.attar"
    bundle.write(clustered(), path)
    return path


def set_weight(key: str, value: Any) -> Any:
    return lambda facts: facts["weights"][0].update({key: value})


def named(entry: str, data: bytes) -> Any:
    return lambda facts: facts["files"].update({entry: hashlib.sha256(data).hexdigest()})


BAD = {
    "another entry": {"../../evil": b"x"},
    "absolute entry": {"/etc/passwd": b"x"},
    "no manifest": {"manifest.json": None},
    "no weight": {"weights/00000": None},
    "no model": {"model.onnx": None},
    "manifest is a list": {"manifest.json": b"[]"},
    "manifest is no JSON": {"manifest.json": b"{"},
    "manifest nests": {"manifest.json": b"[" * 100000},
    "later format": {"manifest.json": lambda f: f.update(format=2)},
    "no weights": {"manifest.json": lambda f: f.update(weights=[])},
    "weights are numbers": {"manifest.json": lambda f: f.update(weights=[1])},
    "terabytes": {"manifest.json": set_weight("shape", [1 << 20, 1 << 20])},
    "negative shape": {"manifest.json": set_weight("shape", [-256, -300])},
    "huge dimension": {"manifest.json": set_weight("shape", [10**30])},
    "other shape": {"manifest.json": set_weight("shape", [300, 257])},
    "itemsize": {"manifest.json": set_weight("itemsize", 3)},
    "form": {"manifest.json": set_weight("form", "pickle")},
    "axis": {"manifest.json": set_weight("axis", 7)},
    "streams": {"manifest.json": set_weight("streams", [])},
    "coder": {"manifest.json": set_weight("streams", [{"coder": "x", "coded": 1, "bytes": 2}] * 3)},
    **{
        f"{key} is {value!r:.20}": {"manifest.json": set_weight(key, value)}
        for key, value in [
            *(("entry", 3), ("entry", "manifest.json"), ("entry", "weights/00009"), ("sha256", None)),
            *(("itemsize", True), ("form", 1), ("axis", "0"), ("streams", {}), ("streams", [1])),
            *(("shape", 3), ("shape", [1] * 40), ("shape", [0, 10**30]), ("shape", [True, 300])),
            ("streams", [{"coder": "plain", "coded": True, "bytes": 2}]),
        ]
    },
    "no files": {"manifest.json": lambda f: f.pop("files")},
    "files is a list": {"manifest.json": lambda f: f.update(files=list(f["files"]))},
    "files are numbers": {"manifest.json": lambda f: f.update(files=dict.fromkeys(f["files"], 1))},
    "files lack the model": {
        "model.onnx": None,
        "manifest.json": lambda f: f["files"].pop("model.onnx"),
    },
    "recipe is no text": {"recipe.toml": b"\xff", "manifest.json": named("recipe.toml", b"\xff")},
    "report is no JSON": {"report.json": b"{", "manifest.json": named("report.json", b"{")},
    "report is a list": {"report.json": b"[]", "manifest.json": named("report.json", b"[]")},
    "hash": {"manifest.json": set_weight("sha256", "0" * 64)},
    "other weight": {"weights/00000": b"abc"},
    "other model": {"model.onnx": b"abc"},
}


@pytest.mark.parametrize("what", list(BAD))
def test_damage_is_refused(what: str, good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bad\.attar"):
        bundle.read(rewritten(good, tmp_path / "bad.attar", BAD[what]))
    assert [p.name for p in tmp_path.iterdir()] == ["bad.attar"]


def test_cutting_it_anywhere_is_refused(good: Path, tmp_path: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "cut.attar"
    for cut in [0, 1, 30, *np.linspace(50, len(data) - 1, 15).astype(int)]:
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            bundle.read(path)


def test_flipping_any_byte_changes_nothing_or_is_refused(good: Path, tmp_path: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "flipped.attar"
    wanted = tensors(bundle.read(good).model)
    for at in RNG.integers(0, len(data), 25):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            found = bundle.read(path)
        except InputError:
            continue
        assert tensors(found.model) == wanted


def test_a_bomb_is_refused_before_it_unpacks(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["attar.bundle.read"], "_TEXT", 1 << 20)
    path = tmp_path / "bomb.attar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"[" + b" " * (2 << 20))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(InputError, match="more than"):
        bundle.read(path)
    with pytest.raises(InputError, match="limit of 1000"):
        bundle.read(good, limit=1000)


@pytest.mark.parametrize(
    ("key", "value"), [("axis", "0"), ("streams", {}), ("shape", [-1]), ("itemsize", 3), ("sha256", None)]
)
def test_the_wrong_key_is_named(key: str, value: Any, good: Path, tmp_path: Path) -> None:
    change = {"manifest.json": set_weight(key, value)}
    with pytest.raises(InputError, match=rf"bad\.attar.*weights\[0\]\.{key}"):
        bundle.read(rewritten(good, tmp_path / "bad.attar", change))


def header(at: int, value: int) -> Any:
    """Set 16 bits of the last entry's record in the table of contents, which ends a zip."""

    def change(data: bytearray) -> None:
        struct.pack_into("<H", data, data.rindex(b"PK\x01\x02") + at, value)

    return change


def cut_off(data: bytearray) -> None:
    """Its deflated data end before the zip says."""
    at = data.rindex(b"PK\x01\x02")
    for place in (at + 20, at + 24):
        struct.pack_into("<I", data, place, 1 << 24)
    start = struct.unpack_from("<I", data, at + 42)[0]
    begins = start + 30 + sum(struct.unpack_from("<HH", data, start + 26))
    data[begins] = 0  # a stored block, not the last one, of
    struct.pack_into("<HH", data, begins + 1, 0xFFFF, 0)  # 65535 bytes


def garbage(data: bytearray) -> None:
    start = struct.unpack_from("<I", data, data.rindex(b"PK\x01\x02") + 42)[0]
    data[start + 30 + sum(struct.unpack_from("<HH", data, start + 26))] = 0x07  # a block of no known kind


def later_name(data: bytearray) -> None:
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, 0x800)  # says that the name is UTF-8
    data[at + 46] = 0xFF


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda data: data.__setitem__(slice(0, 4), b"PKXX"), zipfile.BadZipFile),
        (garbage, zlib.error),
        (cut_off, EOFError),
        (later_name, UnicodeDecodeError),
        (header(8, 1), RuntimeError),  # encrypted
        (header(8, 0x20), NotImplementedError),  # a patch of another file
        (header(6, 99), NotImplementedError),  # a later version
        (header(10, 12), None),  # bzip2, lzma and what nobody knows: none that `write` uses
        (header(10, 14), None),
        (header(10, 99), None),
    ],
)
def test_what_zipfile_raises_is_an_input_error(damage: Any, cause: Any, good: Path, tmp_path: Path) -> None:
    data, path = bytearray(good.read_bytes()), tmp_path / "bad.attar"
    damage(data)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.attar") as caught:
        bundle.read(path)
    assert type(caught.value.__cause__) is (cause or type(None))


def test_no_defect_of_ours_passes_for_a_damaged_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "unpack", lambda *args: {}["ours"])
    with pytest.raises(KeyError, match="ours"):
        bundle.read(good)


def test_one_weight_under_many_names_counts_for_each(tmp_path: Path) -> None:
    net = Net("shared")
    x = net.input("x", "N", 64)
    tensor = ir.tensor(np.ones((64, 64), np.float32))
    for i in range(8):
        weight = net.const(np.zeros((64, 64), np.float32), f"w{i}")
        weight.const_value = tensor
        x = net.op("MatMul", x, weight)
    model = net.model(y=x)
    assert len(bundle.write(model, tmp_path / "m.attar").weights) == 1
    assert tensors(bundle.read(tmp_path / "m.attar").model) == tensors(model)
    with pytest.raises(InputError, match="limit of 100000"):
        bundle.read(tmp_path / "m.attar", limit=100_000)


@pytest.mark.parametrize(
    ("shape", "counts", "said"), [((1000, 1), 65536, "more entries"), ((1000, 0), 1, "axis 0")]
)
def test_a_codebook_is_no_larger_than_its_tensor(shape: tuple[int, int], counts: int, said: str) -> None:
    book = [np.full(1000, counts - 1, "<u2").tobytes(), bytes(counts * 1000)]
    coded = [(*streams.encode(part), len(part)) for part in book]
    about = codec.Packed("codebook", 0, tuple(coded)).describe()
    with pytest.raises(InputError, match=said):
        codec.unpack(about, b"".join(part for _, part, _ in coded), shape, 1)


def test_a_stream_yields_no_more_than_it_declares() -> None:
    coder, data = streams.encode(bytes(1 << 20))
    assert (coder, len(data) < 1000) == ("lzma", True)
    assert streams.decode(coder, data, 1 << 20) == bytes(1 << 20)
    for size in (1000, (1 << 20) + 1):
        with pytest.raises(InputError, match="than the"):
            streams.decode(coder, data, size)
    with pytest.raises(InputError):
        streams.decode("lzma", b"\xff" * 40, 100)


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", bytes(1000)])
def test_what_is_no_bundle_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.attar"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.attar"):
        attar.load(path)
