"""Dynamic axes behind Reshape."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from attar import graph
from attar.graph.reshapes import unknown_axis
from attar.runtime import OnnxRuntime


@pytest.mark.parametrize(
    ("shape", "target", "place"),
    [
        (["n", 8, 1, 1], [-1, 8], 0),
        (["n", "t", 6], [0, -1, 2, 3], 1),
        (["n", "t", 6], [-1, 6], None),  # n * t
        ([8, "n"], [-1, 8], None),  # turned round: the -1 is n, but not in its place
        (["n", "m"], [-1, 0], 0),
        (["n", 8], [-1, 4], None),  # 2 n
        (["n", None], [-1, 0], None),
        ([None, 8], [-1, 2, 4], 0),  # without a name, and still the same
        (["n", 0], [-1, 0], None),  # nothing to count
        ([4, 8], [-1, 8], None),  # a number already
        (["n", 8], [-1, -1], None),
    ],
)
def test_which_axis_stays(shape: list[int | str | None], target: list[int], place: int | None) -> None:
    assert unknown_axis(shape, target) == place


def test_axes_behind_reshapes_are_known_by_name() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[batch,8,1,1] x) => (float[a,b] y) '
        "<int64[2] flat = {-1, 8}, int64[3] parts = {-1, 2, 4}, int64[2] none = {-1, 16}> {"
        "f = Reshape<allowzero=1>(x, flat) p = Reshape(f, parts) y = Reshape(p, flat) z = Reshape(x, none) }"
    )
    model.graph.outputs.append(next(n.outputs[0] for n in model.graph if n.outputs[0].name == "z"))
    before = OnnxRuntime().open(graph.clone(model))(np.arange(32, dtype=np.float32).reshape(4, 8, 1, 1))
    graph.normalize(model)
    shapes = {n.outputs[0].name: str(n.outputs[0].shape) for n in model.graph}
    assert shapes["f"] == "[batch,8]"
    assert shapes["p"] == "[batch,2,4]"
    assert shapes["z"] == "[None,16]"  # half the batch
    after = OnnxRuntime().open(model)(np.arange(32, dtype=np.float32).reshape(4, 8, 1, 1))
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_array_equal(got, wanted)
    empty = OnnxRuntime().open(model)(np.zeros((0, 8, 1, 1), np.float32))[0]
    assert empty.shape == (0, 8)
