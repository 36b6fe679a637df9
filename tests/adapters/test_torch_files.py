"""Exported programs and .pt2 files, which must not run code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from torch_nets import ADAPTER, UNet, at, parity, shapes  # noqa: E402

from attar.adapters import find_adapter  # noqa: E402
from attar.errors import InputError  # noqa: E402
from attar.registry import default_registry  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def program(dynamic: bool = True) -> Any:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(UNet().eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes)


def test_exported_programs() -> None:
    source = program()
    assert find_adapter(source, default_registry()).name == "torch"
    loaded = ADAPTER.load(source)
    assert shapes(loaded) == {"x": ["batch", 3, 32, 32]}
    parity(loaded)
    parity(loaded, at(loaded, batch=5))
    assert "down.weight" in loaded.model.graph.initializers
    assert shapes(ADAPTER.load(program(dynamic=False))) == {"x": [2, 3, 32, 32]}


def test_pt2_files(tmp_path: Path) -> None:
    torch.export.save(program(), tmp_path / "net.pt2")
    loaded = ADAPTER.load(tmp_path / "net.pt2")
    parity(loaded, at(loaded, batch=3))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def repacked(source: Path, target: Path, change: Mapping[str, bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            part = name.split("/", 1)[1]
            new.writestr(name, change.get(part, old.read(name)))


def test_pt2_files_cannot_run_code(tmp_path: Path) -> None:
    import io
    import json
    import zipfile

    good, bad, mark = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "exploded"
    torch.export.save(program(), good)
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)
    with zipfile.ZipFile(good) as archive:
        parts = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    config = json.loads(parts["data/weights/model_weights_config.json"])
    text = parts["models/model.json"].decode()
    assert '"expr_str": "' in text
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    evil = text.replace(
        '"expr_str": "', f"\"expr_str\": \"__import__('pathlib').Path('{mark}').touch() or ", 1
    )
    for change in (
        {"data/sample_inputs/model.pt": buffer.getvalue()},
        {f"data/weights/{entry['path_name']}": buffer.getvalue(),
         "data/weights/model_weights_config.json": json.dumps(config).encode()},
        {"models/model.json": evil.encode()},
    ):  # fmt: skip
        repacked(good, bad, change)
        with pytest.raises(InputError, match=r"pickled Python|not arithmetic"):
            ADAPTER.load(bad)
        assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(Bomb(tmp_path / "exploded"), path)
    assert find_adapter(path, default_registry()).name == "torch"
    with pytest.raises(InputError, match="weights_only=True"):
        ADAPTER.load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x05\x06" + b"\0" * 18])
def test_broken_pt2_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pt2").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pt2"):
        ADAPTER.load(tmp_path / "bad.pt2")
    with pytest.raises(InputError, match="cannot read"):
        ADAPTER.load(tmp_path / "none.pt2")


def test_truncated_pt2_files(tmp_path: Path) -> None:
    torch.export.save(program(), tmp_path / "net.pt2")
    content = (tmp_path / "net.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"net\.pt2"):
        ADAPTER.load(tmp_path / "net.pt2")


def test_recognising_imports_nothing() -> None:
    code = (
        "import sys\nfrom attar_torch.adapter import TorchAdapter\n"
        "assert not TorchAdapter().recognises(3) and TorchAdapter().recognises('a.pt2')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
