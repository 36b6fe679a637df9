"""Text models with open sequence axes written as MXNet: positions, and what is repeated by the batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from mxnet_files import near
from mxnet_models import model_of, normal, same_as_onnx, written
from onnx import helper

from attar.errors import ConversionError
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar_mxnet.writing import save_exported

n = helper.make_node
runs_mxnet = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="runs in MXNet")

PLACES = {  # from the range `r` of the sequence to positions `p`
    "plain": [n("Identity", ["r"], ["p"], name="places")],
    "expanded": [
        n("Unsqueeze", ["r", "zero"], ["row"], name="row"),
        n("Expand", ["row", "both"], ["p"], name="places"),
    ],
    "tiled": [
        n("Unsqueeze", ["r", "zero"], ["row"], name="row"),
        n("Concat", ["batch", "one"], ["times"], name="times", axis=0),
        n("Tile", ["row", "times"], ["p"], name="places"),
    ],
}


def text_model(places: Sequence[onnx.NodeProto], start: int = 0, kind: type = np.int64) -> ir.Model:
    """One layer of masked self-attention over tokens and learnt positions; every reshape is computed from
    Shape, so that batch and sequence may be any size."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        n("Shape", ["ids"], ["both"], name="both"),
        n("Shape", ["ids"], ["batch"], name="batch", start=0, end=1),
        n("Shape", ["ids"], ["length"], name="length", start=1, end=2),
        n("Squeeze", ["length", "zero"], ["stop_long"], name="stop"),
        n("Cast", ["stop_long"], ["stop"], name="stop_cast", to=element),
        n("Range", ["first", "stop", "step"], ["r"], name="range"),
        *places,
        n("Gather", ["tokens", "ids"], ["e"], name="embed"),
        n("Gather", ["positions", "p"], ["place"], name="place"),
        n("Add", ["e", "place"], ["x"], name="x"),
        n("Concat", ["batch", "length", "two", "rest"], ["split"], name="split_shape", axis=0),
        n("Concat", ["batch", "length", "eight"], ["join"], name="join_shape", axis=0),
    ]
    for head, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            n("MatMul", ["x", f"{head}.weight"], [f"{head}m"], name=f"{head}.matmul"),
            n("Reshape", [f"{head}m", "split"], [f"{head}r"], name=f"{head}.split"),
            n("Transpose", [f"{head}r"], [f"{head}t"], name=f"{head}.turn", perm=perm),
        ]
    nodes += [
        n("Concat", ["batch", "one", "length", "length"], ["square"], name="square", axis=0),
        n("Unsqueeze", ["mask", "middle"], ["mask4"], name="mask4"),
        n("Expand", ["mask4", "square"], ["mask_all"], name="mask_all"),
        n("Cast", ["mask_all"], ["seen"], name="seen", to=onnx.TensorProto.BOOL),
        n("MatMul", ["qt", "kt"], ["scores"], name="scores"),
        n("Where", ["seen", "scores", "low"], ["masked"], name="masked"),
        n("Softmax", ["masked"], ["share"], name="softmax", axis=-1),
        n("MatMul", ["share", "vt"], ["mixed"], name="mix"),
        n("Transpose", ["mixed"], ["turned"], name="back", perm=[0, 2, 1, 3]),
        n("Reshape", ["turned", "join"], ["joined"], name="join"),
        n("Add", ["joined", "x"], ["y"], name="residual"),
    ]
    weights = {"tokens": normal(0, 20, 8), "positions": normal(1, 40, 8), "low": np.float32([-1e4])}
    weights |= {f"{head}.weight": normal(k, 8, 8, scale=0.4) for k, head in enumerate("qkv", 2)}
    weights |= {"zero": [0], "one": [1], "two": [2], "rest": [-1], "eight": [8], "middle": [1, 2]}
    weights |= {"first": kind(start), "step": kind(1)}
    inputs = {k: (np.int64, ["batch", "length"]) for k in ("ids", "mask")}
    return model_of(nodes, inputs, ["y"], {k: np.asarray(v) for k, v in weights.items()})


def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([batch, length])
    mask = np.ones((batch, length), np.int64)
    mask[0, (length + 1) // 2 :] = 0
    return {"ids": rng.integers(0, 20, (batch, length)), "mask": mask}


SIZES = ((2, 7), (1, 1), (3, 31), (5, 2), (4, 4))


@runs_mxnet
@pytest.mark.parametrize("kind", [np.int64, np.int32])
@pytest.mark.parametrize("places", PLACES)
def test_any_batch_and_any_length(places: str, kind: type) -> None:
    exported = same_as_onnx(text_model(PLACES[places], kind=kind), *(feeds(*s) for s in SIZES))
    operators = [node.op for node in exported.native.symbol.nodes]
    assert operators.count("_contrib_arange_like") == 1
    assert "shape_array" not in operators


@pytest.mark.parametrize("places", PLACES)
def test_what_was_written_is_read_back(places: str, tmp_path: Path) -> None:
    model = text_model(PLACES[places])
    path = save_exported(written(model), tmp_path / "net")[0]
    shapes = dict.fromkeys(("ids", "mask"), ("batch", "length"))
    back = default_registry().get_adapter("mxnet").load(path, shapes=shapes).model
    for size in SIZES:
        ours, theirs = (OnnxRuntime().open(m).run(feeds(*size))[0] for m in (back, model))
        near(ours, theirs, rel=4e-6)


@runs_mxnet
def test_repeated_by_sizes_of_inputs() -> None:
    nodes = [
        n("Shape", ["x"], ["s"], name="s"),
        n("Tile", ["table", "s"], ["both"], name="both"),
        n("Shape", ["x"], ["b"], name="b", start=0, end=1),
        n("Concat", ["three", "b"], ["mixed"], name="mixed", axis=0),
        n("Tile", ["table", "mixed"], ["across"], name="across"),
        n("Cast", ["x"], ["flags"], name="flags", to=onnx.TensorProto.BOOL),
        n("Tile", ["flags", "mixed"], ["flags_across"], name="flags_across"),
    ]
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = model_of(
        nodes,
        {"x": (np.float32, ["batch", "width"])},
        ["both", "across", "flags_across"],
        {"table": table, "three": np.array([3])},
    )
    same_as_onnx(model, *({"x": np.round(normal(k, *s))} for k, s in enumerate(((2, 5), (1, 1), (4, 3)))))


@runs_mxnet
@pytest.mark.parametrize("upper", [0, 1])
def test_triangles_of_flags(upper: int) -> None:
    nodes = [
        n("Cast", ["x"], ["flags"], name="flags", to=onnx.TensorProto.BOOL),
        n("Trilu", ["flags", "k"], ["y"], name="triangle", upper=upper),
    ]
    model = model_of(nodes, {"x": (np.float32, ["length", "width"])}, ["y"], {"k": np.array(1)})
    same_as_onnx(model, {"x": np.ones((4, 4), np.float32)}, {"x": np.ones((2, 5), np.float32)})


def test_other_ranges_of_open_length_are_refused() -> None:
    with pytest.raises(ConversionError, match="from 0 by ones") as caught:
        written(text_model(PLACES["plain"], start=1))
    assert caught.value.missing["Range"] == ("range",)
    counted = [n("Size", ["x"], ["stop"], name="size"), n("Range", ["zero", "stop", "one"], ["y"], name="r")]
    numbers = {"zero": np.array(0), "one": np.array(1)}
    with pytest.raises(ConversionError, match="from 0 by ones"):
        written(model_of(counted, {"x": (np.float32, ["batch", 2])}, ["y"], numbers))


def test_numbers_of_repetitions_that_are_computed_are_refused() -> None:
    nodes = [
        n("Shape", ["x"], ["s"], name="s"),
        n("Add", ["s", "s"], ["twice"], name="twice"),
        n("Tile", ["x", "twice"], ["y"], name="tile"),
    ]
    with pytest.raises(ConversionError, match="number of repetitions") as caught:
        written(model_of(nodes, {"x": (np.float32, ["batch", "width"])}, ["y"]))
    assert caught.value.missing == {"Tile": ("tile",)}
