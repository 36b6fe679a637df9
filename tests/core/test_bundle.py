"""Bundles: every tensor comes back to the byte, small where weights say little, and bad files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import attar
from attar import bundle, graph
from attar.bundle import codec
from attar.cli import cli
from attar.testing import ZOO
from attar.testing.build import Net

RNG = np.random.default_rng(0)


def tensors(model: ir.Model) -> dict[str, tuple[Any, ...]]:
    return {
        f"{g.name}/{v.name}": (t.dtype, tuple(t.shape.numpy()), t.tobytes())
        for g in model.graphs()
        for v in g.initializers.values()
        if (t := v.const_value) is not None
    }


def clustered(count: int = 32) -> ir.Model:
    net = Net("clustered")
    x = net.input("x", "N", 256)
    book = RNG.standard_normal(count).astype(np.float32)
    w = book[RNG.integers(0, count, (256, 300))]
    w[RNG.random(w.shape) < 0.5] = 0
    return net.model(y=net.op("MatMul", x, net.const(w, "w")))


@pytest.mark.parametrize("name", list(ZOO))
def test_every_model_comes_back_to_the_byte(name: str, tmp_path: Path) -> None:
    model = ZOO[name].build()
    before = graph.to_bytes(model)
    bundle.write(model, tmp_path / "m.attar")
    back = bundle.read(tmp_path / "m.attar").model
    assert tensors(back) == tensors(model)
    assert graph.to_bytes(back) == before == graph.to_bytes(model)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=24),
        elements=st.one_of(st.integers(0, 3), st.integers(0, 255)),
    )
)
def test_words_come_back(words: np.ndarray[Any, Any]) -> None:
    packed = codec.pack(words)
    data = b"".join(part for _, part, _ in packed.parts)
    about = json.loads(json.dumps(packed.describe()))
    back = codec.unpack(about, data, words.shape, words.itemsize)
    assert back.dtype == words.dtype
    np.testing.assert_array_equal(back, words)


@pytest.mark.parametrize("kinds", [2, 255, 256, 257, 5000, 65536])
@pytest.mark.parametrize("rows", [1, 40])
def test_codebooks_of_every_size(kinds: int, rows: int) -> None:
    pool = RNG.choice(1 << 30, kinds, replace=False).astype(np.uint32)
    words = pool[RNG.integers(0, kinds, (rows, 4000))]
    words.reshape(-1)[: min(kinds, words.size)] = pool[: words.size]
    packed = codec.pack(words)
    data = b"".join(part for _, part, _ in packed.parts)
    np.testing.assert_array_equal(codec.unpack(packed.describe(), data, words.shape, 4), words)


def test_signs_of_zero_and_payloads_of_nan_are_kept(tmp_path: Path) -> None:
    net = Net("odd")
    x = net.input("x", "N", 64)
    bits = np.tile(np.array([0, 1 << 31, 0x7FC00001, 0xFFC12345, 1, 0x3F800000], np.uint32), 64)
    model = net.model(y=net.op("Add", x, net.const(bits[:64].view(np.float32), "w")))
    big = net.const(np.tile(bits, 4).view(np.float32), "big")
    model.graph.register_initializer(big)
    bundle.write(model, tmp_path / "m.attar")
    assert tensors(bundle.read(tmp_path / "m.attar").model) == tensors(model)


def test_few_values_take_few_bytes(tmp_path: Path) -> None:
    model = clustered()
    made = bundle.write(model, tmp_path / "m.attar")
    # Half zeros and 32 values: 1 + 5 / 2 bits by the entropy, 3.5 / 32 of fp32; the coder may take 6 % more.
    assert made.bytes < 1.06 * 3.5 / 32 * made.plain + 2000
    assert made.bytes == (tmp_path / "m.attar").stat().st_size
    assert made.weights["w"][0] == "codebook"


def test_channels_with_values_of_their_own_take_few_bytes() -> None:
    codes = RNG.integers(0, 16, (64, 2000))
    words = (codes * RNG.lognormal(size=(64, 1))).astype(np.float32).view(np.uint32)
    packed = codec.pack(words)
    assert (packed.form, packed.axis) == ("codebook", 0)
    assert packed.size < 1.06 * words.size / 2 + 64 * 16 * 4 + 200


def test_equal_models_make_equal_bundles(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundle.write(ZOO["encoder"].build(), tmp_path / f"{name}.attar")
    assert (tmp_path / "a.attar").read_bytes() == (tmp_path / "b.attar").read_bytes()


def test_it_loads_as_any_model_and_keeps_recipe(tmp_path: Path) -> None:
    model, path = clustered(), tmp_path / "m.attar"
    bundle.write(model, path, recipe='[[pass]]\nname = "fuse.inference"\n')
    loaded = attar.load(path)
    assert tensors(loaded) == tensors(model)
    assert bundle.read(path).recipe == '[[pass]]\nname = "fuse.inference"\n'


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.attar"
    path.write_bytes(b"old")
    monkeypatch.setattr(codec, "pack", lambda words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.write(clustered(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.attar"]


def test_the_commands(tmp_path: Path) -> None:
    model, packed, plain = tmp_path / "m.onnx", tmp_path / "m.attar", tmp_path / "back.onnx"
    graph.save(clustered(), model)
    run = CliRunner().invoke
    done = run(cli, ["pack", str(model), "-o", str(packed), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == packed.stat().st_size < 0.2 * model.stat().st_size
    done = run(cli, ["unpack", str(packed), "-o", str(plain)])
    assert done.exit_code == 0, done.output
    assert tensors(attar.load(plain)) == tensors(attar.load(model))
    assert run(cli, ["pack", str(model), "-o", str(tmp_path / "m.zip")]).exit_code == 1
    assert run(cli, ["unpack", str(model), "-o", str(plain)]).exit_code == 1
    assert run(cli, ["unpack", str(packed), "-o", str(plain), "--limit", "10"]).exit_code == 1
