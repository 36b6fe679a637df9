"""Writing models: preparation, parity, `export`, `convert` and `attar convert`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from spine_models import cnn

import attar
from attar import graph
from attar.adapters import Adapter, Exported, Loaded
from attar.cli import cli
from attar.conversion import NodeView, prepare
from attar.conversion.parity import compare_outputs
from attar.errors import ConversionError, InputError, VerifyError
from attar.hooks import hookimpl
from attar.registry import Registry, default_registry
from attar.runtime import OnnxRuntime

PRIMITIVES = frozenset(
    """
    Abs Add And Cast Ceil Clip Concat ConstantOfShape Conv DequantizeLinear Div Equal Erf Exp Expand
    Flatten Gather Greater GreaterOrEqual Identity InstanceNormalization IsNaN Less LessOrEqual Log
    MatMul Max Min Mod Mul Neg Not Or Pow QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceSum
    Relu Reshape Shape Sigmoid Size Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Trilu
    Unsqueeze Where Sum
    """.split()  # noqa: SIM905  a list of words is what it is
)


def model_of(
    nodes: list[Any], inputs: dict[str, Any], weights: dict[str, Any], opset: int = 21, out: Any = None
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    return attar.load(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def run(model: ir.Model, feeds: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return OnnxRuntime().open(model, optimize=False).run(feeds)[0]


X = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("node", "weights", "opset", "feeds"),
    [
        (helper.make_node("Gelu", ["x"], ["y"], approximate="tanh"), {}, 21, X),
        (helper.make_node("Celu", ["x"], ["y"]), {}, 21, X),  # alpha by default
        (helper.make_node("Elu", ["x"], ["y"]), {}, 21, X),
        (helper.make_node("HardSwish", ["x"], ["y"]), {}, 21, X),
        (helper.make_node("Mish", ["x"], ["y"]), {}, 21, X),
        (helper.make_node("Softplus", ["x"], ["y"]), {}, 21, X),
        (
            helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=1),
            {"s": np.ones((6, 4), np.float32)},
            21,
            X,
        ),
        (helper.make_node("RMSNormalization", ["x", "s"], ["y"]), {"s": np.full(4, 2, "f")}, 23, X),
        (
            helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2),
            {"s": np.arange(6, dtype="f"), "b": np.ones(6, "f")},
            21,
            X,
        ),
        (helper.make_node("MeanVarianceNormalization", ["x"], ["y"], axes=[0, 2]), {}, 21, X),
        (
            helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1, q_num_heads=2, kv_num_heads=2),
            {"k": X[:, :5], "v": X[:, :5] * 2},
            23,
            X,
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_operators_are_written_with_those_that_define_them(
    node: Any, weights: dict[str, Any], opset: int, feeds: Any
) -> None:
    name = node.input[0]
    model = model_of([node], {name: list(feeds.shape)}, weights, opset, out=list(feeds.shape))
    before = graph.to_bytes(model)
    prepared = prepare(model, PRIMITIVES, "nowhere", registry=default_registry())
    assert {n.op_type for n in graph.all_nodes(prepared)} <= PRIMITIVES
    assert node.op_type not in {n.op_type for n in graph.all_nodes(prepared)}
    np.testing.assert_allclose(run(prepared, {name: feeds}), run(model, {name: feeds}), rtol=1e-6, atol=1e-6)
    assert graph.to_bytes(model) == before


def test_what_is_known_stays_and_shapes_become_numbers() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"]),
        helper.make_node("Shape", ["g"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Concat", ["free", "c", "two"], ["t"], axis=0),
        helper.make_node("Reshape", ["g", "t"], ["y"]),
    ]
    weights = {"one": np.array([1]), "free": np.array([-1]), "two": np.array([2, 2])}
    model = model_of(nodes, {"x": ["n", 6, 4]}, weights)
    prepared = prepare(model, {"Gelu", "Reshape"}, "nowhere", registry=default_registry())
    assert [n.op_type for n in prepared.graph] == ["Gelu", "Reshape"]
    assert graph.const_array(list(prepared.graph)[1].inputs[1]).tolist() == [-1, 6, 2, 2]


def test_scalars_that_are_folded_stay_scalars() -> None:
    nodes = [helper.make_node("Mul", ["a", "b"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    model = model_of(nodes, {"x": []}, {"a": np.float32(2), "b": np.float32(3)})
    prepared = prepare(model, {"Add"}, "nowhere", registry=default_registry())
    assert graph.const_array(next(iter(prepared.graph)).inputs[1]).shape == ()
    assert run(prepared, {"x": np.float32(1)}).shape == ()


def test_all_that_is_missing_is_listed_at_once() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["b"], "second"),
        helper.make_node("Relu", ["b"], ["y"], "third"),
    ]
    with pytest.raises(ConversionError, match=r"nowhere has no counterpart for 2 operators") as caught:
        prepare(model_of(nodes, {"x": [2]}, {}), {"Add"}, "nowhere", registry=default_registry())
    assert caught.value.missing == {"Relu": ("first", "third"), "Tanh": ("second",)}
    assert "attar_lowerings('nowhere')" in str(caught.value)


def test_a_view_gives_attributes_inputs_and_refusals() -> None:
    nodes = [
        helper.make_node("Squeeze", ["x", "axes"], ["a"], "sq"),
        helper.make_node("Elu", ["a"], ["y"], "e"),
    ]
    model = model_of(nodes, {"x": [1, "n"]}, {"axes": np.array([0])})
    squeeze, elu = (NodeView(n, opset=21, framework="nowhere") for n in model.graph)
    assert squeeze.option(1, "axes").tolist() == [0]
    assert squeeze.shape() == (1, "n")
    assert squeeze.dtype() == np.float32
    assert squeeze.const(0) is None
    assert squeeze.input(7) is None
    assert elu.attr("alpha") == 1.0  # the schema's default
    assert elu.attr("alpha", 3.0) == 3.0
    assert elu.option(1, "alpha", 5.0) == 5.0
    with pytest.raises(
        ConversionError, match=r"nowhere cannot say the Squeeze node 'sq' exactly: x is computed"
    ):
        squeeze.need_const(0, "x")
    assert elu.refuse("why").missing == {"Elu": ("e",)}


def test_parity_takes_nan_and_infinity_as_they_are() -> None:
    wanted = [np.array([1.0, np.nan, -np.inf, 4.0])]
    same = compare_outputs(["y"], wanted, [wanted[0].copy()], "it")
    assert same.absolute == same.relative == same.rms == 0.0
    off = compare_outputs(["y"], wanted, [np.array([1.0, np.nan, -np.inf, 4.4])], "it")
    assert off.absolute == pytest.approx(0.4)
    assert off.relative == pytest.approx(0.1)
    assert compare_outputs(["y"], wanted, [np.array([1.0, 2.0, -np.inf, 4.0])], "it").relative == np.inf
    with pytest.raises(VerifyError, match="it gives 0 outputs"):
        compare_outputs(["y"], wanted, [], "it")


class Scaled(Adapter):
    """Writes a model as its bytes and runs it with all outputs multiplied."""

    name = "scaled"
    suffixes = (".scaled",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def load(self, source: Any, *, inputs: Any = None, registry: Any = None, **options: Any) -> Loaded:
        raise InputError("not read")

    def write(self, model: ir.Model, *, registry: Registry, **options: Any) -> Exported:
        content = graph.to_bytes(model)
        if not np.isfinite(self.factor):
            raise TypeError(f"{self.factor} times what?")

        def scaled(feeds: Any) -> Any:
            return [self.factor * y for y in OnnxRuntime().open(content).run(feeds)]

        return Exported(content, scaled, ("scaled it",), tolerance=0.01)

    def save(self, exported: Exported, path: Path, **options: Any) -> tuple[Path, ...]:
        path.write_bytes(exported.native)
        return (path,)


def with_scaled(factor: float) -> Registry:
    class Plugin:
        @hookimpl
        def attar_adapters(self) -> list[Adapter]:
            return [Scaled(factor)]

    registry = Registry.discover()
    registry.register(Plugin(), name="scaled")
    return registry


def test_export_is_checked_against_the_model() -> None:
    proto = attar.export(attar.load(cnn(8)), "onnx")
    assert proto.graph.node
    old = attar.export(cnn(8), "onnx", opset=17)
    assert {o.domain: o.version for o in old.opset_import}[""] == 17
    assert isinstance(attar.export(cnn(8), "scaled", registry=with_scaled(1.005)), bytes)
    with pytest.raises(VerifyError, match=r"scaled model computes something else[\s\S]*verify=False"):
        attar.export(cnn(8), "scaled", registry=with_scaled(1.02))
    assert isinstance(attar.export(cnn(8), "scaled", registry=with_scaled(1.02), verify=False), bytes)
    with pytest.raises(ConversionError, match="scaled cannot write the model: TypeError: nan times what"):
        attar.export(cnn(8), "scaled", registry=with_scaled(float("nan")))
    with pytest.raises(InputError, match=r"unknown framework 'onx'[\s\S]*did you mean 'onnx'"):
        attar.export(cnn(8), "onx")


def test_convert_tells_what_it_did(tmp_path: Path) -> None:
    done = attar.convert(cnn(8), "scaled", tmp_path / "m.scaled", registry=with_scaled(1.0))
    assert done.files == (tmp_path / "m.scaled",)
    assert done.source == "onnx"
    assert done.writing is not None
    assert done.writing.relative == 0.0
    assert set(done.seconds) == {"read", "write", "verify", "save"}
    told = str(done)
    assert "onnx -> scaled" in told
    assert "scaled it" in told
    assert json.loads(json.dumps(done.to_dict()))["writing"][0]["absolute"] == 0.0


def test_nothing_is_written_when_the_result_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(VerifyError):
        attar.convert(cnn(8), "scaled", tmp_path / "m.scaled", registry=with_scaled(2.0))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="there is no folder"):
        attar.convert(cnn(8), "onnx", tmp_path / "nowhere" / "m.onnx")


def test_the_command_converts(tmp_path: Path) -> None:
    graph.save(attar.load(cnn(8)), tmp_path / "m.onnx")
    names = [str(tmp_path / "m.onnx"), "--to", "onnx", "-o", str(tmp_path / "n.onnx")]
    done = CliRunner().invoke(cli, ["convert", *names, "--option", "opset=18", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == [str(tmp_path / "n.onnx")]
    assert onnx.load(tmp_path / "n.onnx").opset_import[0].version == 18
    np.save(tmp_path / "x.npy", np.ones((3, 3, 24, 24), np.float32))
    done = CliRunner().invoke(cli, ["convert", *names, "--inputs", str(tmp_path / "x.npy")])
    assert done.exit_code == 0, done.output
    assert "largest difference" in done.stdout


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--option", "opset"], "NAME=VALUE"),
        (["--option", "colour=red"], "no option 'colour'"),
        (["--inputs", "none.npy"], "cannot read"),
        (["--inputs", "m.onnx"], "no .npy or .npz"),
    ],
)
def test_the_command_names_what_is_wrong(
    tmp_path: Path, extra: list[str], told: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    graph.save(attar.load(cnn(8)), "m.onnx")
    done = CliRunner().invoke(cli, ["convert", "m.onnx", "--to", "onnx", "-o", "n.onnx", *extra])
    assert done.exit_code == 1
    assert told in done.stderr
    assert not Path("n.onnx").exists()
