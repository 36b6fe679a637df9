"""Operators with many options, held against ONNX Runtime over a grid of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_writing import agree, one_node, same, seeded, write  # noqa: E402

from attar.errors import ConversionError  # noqa: E402
from attar.runtime import OnnxRuntime  # noqa: E402


def grid(**options: Any) -> list[dict[str, Any]]:
    rows = itertools.product(*options.values())
    return [{k: v for k, v in zip(options, row, strict=True) if v is not None} for row in rows]


def runs(model: Any, feeds: Any) -> bool:
    try:
        OnnxRuntime().open(model).run(feeds)
    except Exception:  # combinations that ONNX Runtime itself refuses
        return False
    return True


def sweep(op: str, feeds: dict[str, Any], constants: dict[str, Any], options: list[dict[str, Any]]) -> int:
    """How many combinations were written and right; wrong ones fail."""
    right = 0
    for attributes in options:
        try:
            model = one_node(op, feeds, constants, **attributes)
        except Exception:  # not valid ONNX
            continue
        if not runs(model, feeds):
            continue
        try:
            exported = write(model)
        except ConversionError:
            continue
        same(exported, model, feeds)
        right += 1
    return right


def test_convolutions() -> None:
    x, w = seeded(2, 4, 7, 8), {"w": seeded(6, 2, 3, 2), "b": seeded(6)}
    options = grid(
        group=[2],
        strides=[None, (2, 3)],
        dilations=[None, (2, 1)],
        pads=[None, (1, 1, 1, 1), (0, 1, 2, 0)],
        auto_pad=[None, "VALID", "SAME_UPPER", "SAME_LOWER"],
    )
    options = [o for o in options if not ("pads" in o and "auto_pad" in o)]
    assert sweep("Conv", {"x": x}, w, options) >= 20


def test_transposed_convolutions() -> None:
    x, w = seeded(2, 4, 5, 6), {"w": seeded(4, 3, 3, 2), "b": seeded(3)}
    options = grid(
        strides=[None, (2, 3)],
        pads=[None, (1, 1, 1, 1), (0, 1, 1, 0)],
        output_padding=[None, (1, 0)],
        output_shape=[None, (10, 17), (9, 18)],
        auto_pad=[None, "SAME_UPPER", "SAME_LOWER"],
    )
    options = [o for o in options if not ("pads" in o and len(o) > 2 and "output_shape" in o)]
    assert sweep("ConvTranspose", {"x": x}, w, options) >= 20


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling(op: str) -> None:
    options = grid(
        kernel_shape=[(3, 2)],
        strides=[None, (2, 3)],
        pads=[None, (1, 1, 1, 1), (0, 1, 2, 0)],
        ceil_mode=[0, 1],
        dilations=[None, (1, 2)],
        **({"count_include_pad": [0, 1]} if op == "AveragePool" else {}),
    )
    assert sweep(op, {"x": seeded(2, 3, 9, 8)}, {}, options) >= 15


def test_resizing() -> None:
    x = seeded(1, 2, 6, 5)
    right = 0
    for mode, where, sizes in itertools.product(
        ("nearest", "linear", "cubic"),
        ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
        ((12, 10), (3, 4), (9, 7)),
    ):
        constants = {"sizes": np.array([1, 2, *sizes])}
        model = one_node(
            "Resize",
            {"x": x},
            constants,
            order=["x", "", "", "sizes"],
            mode=mode,
            coordinate_transformation_mode=where,
            nearest_mode="floor" if where == "asymmetric" else "round_prefer_floor",
        )
        agree(model, {"x": x}, rel=1e-4)
        right += 1
    assert right == 36


def test_slices_pads_and_gathers() -> None:
    x = seeded(4, 5, 6)
    for start, end, step in itertools.product((0, 2, -3, 9), (1, 4, -1, -9, 1 << 40), (1, 2, -1, -2)):
        names = {"start": [start], "end": [end], "axis": [1], "step": [step]}
        agree(one_node("Slice", {"x": x}, {n: np.array(v) for n, v in names.items()}), {"x": x})
    for mode in ("constant", "edge", "reflect", "wrap"):
        constants = {"pads": np.array([0, 2, 1, 1, 0, 3])}
        agree(one_node("Pad", {"x": x}, constants, mode=mode), {"x": x})
    for axis, ids in itertools.product((0, 1, -1), (np.array(-2), np.array([1, -1, 0]), np.array([[0, -3]]))):
        agree(one_node("Gather", {"x": x}, {"ids": ids}, axis=axis), {"x": x})
        agree(one_node("Gather", {"x": x, "ids": ids}, axis=axis), {"x": x, "ids": ids})


def test_integers_are_divided_and_raised_as_onnx_does() -> None:
    a, b = np.array([7, -7, 7, -7, 0]), np.array([2, 2, -2, -2, 3])
    for op, kinds in (("Div", (np.int32, np.int64)), ("Mod", (np.int8, np.int64)), ("Pow", (np.int32,))):
        for kind in kinds:
            x, y = a.astype(kind), np.abs(b).astype(kind) if op == "Pow" else b.astype(kind)
            agree(one_node(op, {"x": x}, {"other": y}), {"x": x})
            agree(one_node(op, {"x": x, "other": y}), {"x": x, "other": y})


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_operators(op: str, direction: str) -> None:
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    x = seeded(5, 3, 4)
    weights = {
        "w": seeded(count, gates * 6, 4, seed=1),
        "r": seeded(count, gates * 6, 6, seed=2),
        "b": seeded(count, gates * 12, seed=3),
        "lengths": np.array([5, 2, 4], np.int32),
        "h": seeded(count, 3, 6, seed=4),
    }
    outputs = ("y", "h_last", "c_last") if op == "LSTM" else ("y", "h_last")
    extra = {
        "GRU": [{}, {"linear_before_reset": 1}],
        "LSTM": [{}, {"input_forget": 1}],
        "RNN": [{}, {"clip": 0.4}, {"activations": ["Relu"] * count}],
    }[op]
    for lengths, more in itertools.product((False, True), extra):
        order = ["x", "w", "r", "b", "lengths" if lengths else "", "" if op == "LSTM" else "h"]
        used = {n: a for n, a in weights.items() if n in order}
        model = one_node(
            op, {"x": x}, used, order=order, outputs=outputs, hidden_size=6, direction=direction, **more
        )
        module = agree(model, {"x": x}).native
        result = module(torch.tensor(x))
        result[0].sum().backward()
        assert all(p.grad is not None for p in module.parameters())
        assert len(list(module.parameters())) >= 3


def test_batches_of_any_size_go_through_shape_arithmetic() -> None:
    import onnx
    import onnx.helper as h

    from attar import graph

    nodes = [
        h.make_node("Shape", ["x"], ["s"]),
        h.make_node("Gather", ["s", "zero"], ["n"]),
        h.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        h.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        h.make_node("Reshape", ["x", "target"], ["y"]),
        h.make_node("Mul", ["n", "two"], ["n2"]),
        h.make_node("Range", ["zero", "n2", "one"], ["r"]),
    ]
    ints = {"zero": 0, "axis": [0], "rest": [2, -1], "two": 2, "one": 1}
    proto = h.make_model(
        h.make_graph(
            nodes,
            "shapes",
            [h.make_tensor_value_info("x", 1, ["n_", 6])],
            [h.make_tensor_value_info("y", 1, None), h.make_tensor_value_info("r", 7, None)],
            [onnx.numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items()],
        ),
        opset_imports=[h.make_opsetid("", 21)],
        ir_version=10,
    )
    model = graph.from_proto(proto)
    exported = agree(model, {"x": seeded(3, 6)})
    same(exported, model, {"x": seeded(5, 6)})
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(exported.native, (torch.randn(3, 6),), dynamic_shapes=({0: dim},))
    assert program.module()(torch.randn(7, 6))[1].shape == (14,)


def test_choices_and_loops_become_modules() -> None:
    import onnx
    import onnx.helper as h

    from attar import graph

    def branch(op: str) -> Any:
        node = h.make_node(op, ["x", "w"], ["out"])
        return h.make_graph([node], op, [], [h.make_tensor_value_info("out", 1, [2, 3])])

    proto = h.make_model(
        h.make_graph(
            [
                h.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
                h.make_node("Greater", ["total", "zero"], ["positive"]),
                h.make_node("If", ["positive"], ["y"], then_branch=branch("Add"), else_branch=branch("Mul")),
            ],
            "choice",
            [h.make_tensor_value_info("x", 1, [2, 3])],
            [h.make_tensor_value_info("y", 1, [2, 3])],
            [
                onnx.numpy_helper.from_array(seeded(3), "w"),
                onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"),
            ],
        ),
        opset_imports=[h.make_opsetid("", 21)],
        ir_version=10,
    )
    model = graph.from_proto(proto)
    x = np.abs(seeded(2, 3))
    exported = agree(model, {"x": x})
    same(exported, model, {"x": -x})
    (choice,) = [m for m in exported.native.modules() if type(m).__name__ == "Choice"]
    assert len(list(choice.children())) == 2
    program = torch.export.export(exported.native, (torch.tensor(x),))
    for way in (x, -x):
        assert torch.equal(program.module()(torch.tensor(way)), exported.native(torch.tensor(way)))


def test_quantized_weights_stay_integers() -> None:
    x = seeded(2, 4)
    q = np.random.default_rng(0).integers(-128, 127, (5, 4)).astype(np.int8)
    constants = {"q": q, "scale": np.linspace(0.01, 0.05, 5).astype(np.float32), "zero": np.zeros(5, np.int8)}
    model = one_node("DequantizeLinear", {}, constants, axis=0)
    (made,) = write(model).run({})
    np.testing.assert_allclose(made, q * constants["scale"][:, None], rtol=1e-6)
    module = write(model).native
    assert [t.dtype for t in module.state_dict().values() if t.shape == (5, 4)] == [torch.int8]
    kinds = {"quantize": {"scale": np.float32(0.05), "zero": np.uint8(120)}}
    exported = agree(one_node("QuantizeLinear", {"x": x}, kinds["quantize"]), {"x": x})
    assert exported.tolerance > 1e-3
    assert "round" in exported.notes[0]
    names = [str(n.target) for n in exported.native.graph.nodes if n.op == "call_function"]
    assert names == ["quantized_decomposed.quantize_per_tensor.default"]


def test_what_torch_cannot_say_is_refused_by_name() -> None:
    x = seeded(2, 3)
    with pytest.raises(ConversionError, match="uint4"):
        write(one_node("Cast", {"x": x}, to=21))
    with pytest.raises(ConversionError, match="Bernoulli"):
        write(one_node("Bernoulli", {"x": np.abs(x)}))
