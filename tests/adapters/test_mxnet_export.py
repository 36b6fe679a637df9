"""Models written as MXNet: files, names, training, refusals, and the same answers as ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from mxnet_files import near
from mxnet_models import convolutional, encoder, model_of, normal, one, recurrent, same_as_onnx, written
from onnx import helper

from attar.adapters import Exported
from attar.errors import ConversionError, InputError
from attar.registry import Registry, default_registry
from attar.runtime import OnnxRuntime
from attar.testing.zoo import ZOO
from attar_mxnet.params import read_params
from attar_mxnet.symbol_json import read_symbol
from attar_mxnet.writing import save_exported, write_symbol


def mxnet():
    pytest.importorskip("numpy")
    if not hasattr(np, "bool"):
        np.bool = np.bool_
    return pytest.importorskip("mxnet")


# -- what is written -------------------------------------------------------------------------------


def test_the_file_pair_is_mxnets(tmp_path: Path) -> None:
    exported = written(convolutional())
    files = save_exported(exported, tmp_path / "net")
    assert [f.name for f in files] == ["net-symbol.json", "net-0000.params"]
    arrays = read_params(files[1])
    assert {n for n in arrays if n.startswith("aux:")} == {"aux:bn.mean", "aux:bn.var"}
    assert "arg:c1.weight" in arrays
    symbol = read_symbol(files[0])
    operators = {n.name: n.op for n in symbol.nodes if not n.is_variable}
    assert operators["c1"] == "Convolution"
    assert operators["bn"] == "BatchNorm"
    assert operators["prelu"] == "LeakyReLU"
    assert operators["fc"] == "FullyConnected"
    assert next(n for n in symbol.nodes if n.name == "bn").attrs["fix_gamma"] == "False"
    assert [symbol.nodes[e.node].name for e in symbol.heads] == ["fc"]


def test_mxnet_itself_writes_the_same_bytes(tmp_path: Path) -> None:
    mx = mxnet()
    exported = written(convolutional())
    symbol, params = exported.native.save(tmp_path / "ours")
    loaded = mx.nd.load(str(params))
    mx.nd.save(str(tmp_path / "theirs.params"), loaded)
    again = mx.nd.load(str(tmp_path / "theirs.params"))
    assert (tmp_path / "theirs.params").read_bytes() == params.read_bytes()
    assert list(again) == list(exported.native.parameters)
    assert mx.sym.load(str(symbol)).list_arguments()[0] == "x"


@pytest.mark.parametrize("name", ["pad_slice_shortcut", "encoder", "conv3d", "weight_is_input"])
def test_the_files_are_read_without_an_example(name: str, tmp_path: Path) -> None:
    zoo = ZOO[name]
    model = zoo.build()
    path = save_exported(written(model), tmp_path / "net")[0]
    back = default_registry().get_adapter("mxnet").load(path).model
    for batch in (1, 3):
        feeds = zoo.inputs(seed=batch, batch=batch)
        ours, theirs = (OnnxRuntime().open(m).run(feeds) for m in (back, model))
        for a, b in zip(ours, theirs, strict=True):
            near(a, b, rel=4e-6)


def test_save_takes_the_name_with_or_without_the_suffix(tmp_path: Path) -> None:
    exported = written(convolutional())
    assert save_exported(exported, tmp_path / "a-symbol.json")[0] == tmp_path / "a-symbol.json"
    assert save_exported(exported, tmp_path / "v1.5")[0] == tmp_path / "v1.5-symbol.json"
    for wrong in (tmp_path / "a.params", tmp_path / "a.onnx", tmp_path / "no" / "net"):
        with pytest.raises(InputError):
            save_exported(exported, wrong)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "a-0000.params",
        "a-symbol.json",
        "v1.5-0000.params",
        "v1.5-symbol.json",
    ]


def test_the_model_is_left_alone() -> None:
    from attar import graph

    model = convolutional()
    before = graph.to_bytes(model)
    written(model)
    assert graph.to_bytes(model) == before


def test_writing_needs_no_mxnet() -> None:
    code = (
        "import sys; sys.modules['mxnet'] = None\n"
        "from mxnet_models import convolutional, written, normal\n"
        "from attar.errors import InputError\n"
        "e = written(convolutional())\n"
        "e.native.save('net')\n"
        "try: e.run({'x': normal(0, 1, 3, 8, 8)})\n"
        "except InputError as error: print('clear:', error)\n"
    )
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False, cwd="/tmp"
    )
    assert done.stdout.startswith("clear: "), done.stderr
    assert "cannot be imported: import of mxnet halted" in done.stdout
    assert "attar[mxnet]" in done.stdout


def test_options_and_feeds_are_checked() -> None:
    with pytest.raises(InputError, match="no option 'layout'"):
        write_symbol(convolutional(), registry=default_registry(), layout="NHWC")
    mxnet()
    exported = written(convolutional())
    with pytest.raises(InputError, match="'x' is not given"):
        exported.run({"y": normal(0, 1, 3, 8, 8)})
    with pytest.raises(InputError, match="float64"):
        exported.run({"x": normal(0, 1, 3, 8, 8).astype(np.float64)})


# -- the same answers ------------------------------------------------------------------------------


def test_any_batch() -> None:
    mxnet()
    same_as_onnx(convolutional(), *({"x": normal(b, b, 3, 8, 8)} for b in (1, 2, 5)))
    rng = np.random.default_rng(0)
    # Negative tokens count from the end of the table.
    same_as_onnx(encoder(), *({"ids": rng.integers(-20, 20, (b, 5))} for b in (1, 3)))
    for kind in ("LSTM", "GRU", "RNN"):
        same_as_onnx(recurrent(kind=kind), *({"x": normal(b, 6, b, 3)} for b in (1, 4)))


def test_the_fused_operator_is_used_where_it_says_the_same() -> None:
    assert "RNN" in {n.op for n in written(recurrent()).native.symbol.nodes}
    x = normal(0, 3, 2, 4)
    weights = [normal(1, 1, 15, 4), normal(2, 1, 15, 5)]
    model = one("GRU", [x, *weights], hidden_size=5, outputs=2, dynamic=False)  # resets before the product
    assert "RNN" not in {n.op for n in written(model).native.symbol.nodes}
    mxnet()
    same_as_onnx(model, {"i0": x})


def test_half_precision_computes_in_float32() -> None:
    mxnet()
    x = normal(0, 2, 3, 6, 6).astype(np.float16)
    model = one("Conv", [x, normal(1, 4, 3, 3, 3).astype(np.float16), normal(2, 4).astype(np.float16)])
    exported = same_as_onnx(model, {"i0": x}, rel=1e-3)
    assert exported.native.parameters["arg:i1"].dtype == np.float16


def test_scalar_outputs_are_scalars() -> None:
    mxnet()
    x = normal(0, 2, 3)
    exported = same_as_onnx(one("ReduceSum", [x], keepdims=0), {"i0": x})
    assert any("scalar" in note for note in exported.notes)


def test_outputs_that_are_inputs_or_repeated() -> None:
    mxnet()
    n = helper.make_node
    nodes = [
        n("Identity", ["x"], ["a"], name="n"),
        n("Relu", ["x"], ["b"], name="r"),
        n("Identity", ["b"], ["c"], name="m"),
    ]
    model = model_of(nodes, {"x": (np.float32, ["batch", 2]), "unused": (np.float32, [1])}, ["a", "b", "c"])
    same_as_onnx(model, {"x": normal(0, 3, 2), "unused": normal(1, 1)})


def test_odd_input_names() -> None:
    mxnet()
    for name in ("input:0", "a b", "größe", "x/y"):
        model = model_of(
            [helper.make_node("Relu", [name], ["y"], name="n")], {name: (np.float32, ["batch", 2])}, ["y"]
        )
        same_as_onnx(model, {name: normal(0, 3, 2)})


def test_a_hundred_layers_are_written_in_a_moment() -> None:
    n = helper.make_node
    nodes, weights, last = [], {}, "x"
    for place in range(50):
        weights[f"w{place}"] = normal(place, 16, 16, 3, 3)
        nodes += [n("Conv", [last, f"w{place}"], [f"c{place}"], name=f"conv{place}", pads=[1] * 4)]
        nodes += [n("Relu", [f"c{place}"], [f"r{place}"], name=f"relu{place}")]
        last = f"r{place}"
    model = model_of(nodes, {"x": (np.float32, ["batch", 16, 8, 8])}, [last], weights)
    start = time.perf_counter()
    written(model)
    assert time.perf_counter() - start < 2


# -- training --------------------------------------------------------------------------------------


def trained(
    exported: Exported, feed: np.ndarray, tmp_path: Path, rate: float = 0.01
) -> tuple[list[float], set[str]]:
    """Losses of a few steps of Gluon's trainer on the files as a user loads them, and the parameters that did
    not change."""
    mx = mxnet()
    symbol, params = exported.native.save(tmp_path / "net")
    block = mx.gluon.SymbolBlock.imports(str(symbol), exported.native.input_names, str(params))
    parameters = block.collect_params()
    trainer = mx.gluon.Trainer(parameters, "sgd", {"learning_rate": rate})
    before = {n: p.data().asnumpy().copy() for n, p in parameters.items()}
    losses = []
    for _ in range(4):
        with mx.autograd.record():
            loss = ((block(mx.nd.array(feed, dtype=feed.dtype)) - 1) ** 2).mean()
        loss.backward()
        trainer.step(1)
        losses.append(float(loss.asscalar()))
    return losses, {n for n, p in parameters.items() if np.array_equal(p.data().asnumpy(), before[n])}


@pytest.mark.parametrize(
    ("model", "feed"),
    [
        (convolutional(), normal(0, 4, 3, 8, 8)),
        (encoder(), np.random.default_rng(0).integers(0, 20, (2, 5))),
        (recurrent(), normal(0, 6, 4, 3)),
        (recurrent(kind="GRU"), normal(0, 6, 4, 3)),
    ],
    ids=["convolutional", "encoder", "lstm", "gru"],
)
def test_every_weight_learns(model, feed: np.ndarray, tmp_path: Path) -> None:
    mxnet()
    exported = written(model)
    losses, still = trained(exported, feed, tmp_path)
    assert losses[-1] < losses[0]
    assert still == set(exported.native.constants)
    weights = {
        v.name
        for v in model.graph.initializers.values()
        if v.const_value.size > 1 and v.dtype.is_floating_point()
    }
    assert weights == set(exported.native.trainable) | {"bn.mean", "bn.var"} & weights


def test_constants_do_not_learn(tmp_path: Path) -> None:
    mxnet()
    n = helper.make_node
    mask = np.where(np.tri(4) > 0, 0, -np.inf).astype(np.float32)
    nodes = [
        n("MatMul", ["x", "w"], ["a"], name="a"),
        n("Add", ["a", "mask"], ["b"], name="mask_it"),
        n("Softmax", ["b"], ["c"], name="softmax"),
        n("Gather", ["c", "order"], ["y"], name="pick", axis=1),
    ]
    weights = {"w": normal(0, 4, 4), "mask": mask, "order": np.array([2, 0, -1])}
    model = model_of(nodes, {"x": (np.float32, ["batch", 4, 4])}, ["y"], weights)
    feed = normal(1, 2, 4, 4)
    exported = same_as_onnx(model, {"x": feed})
    assert exported.native.trainable == ("w",)
    losses, still = trained(exported, feed, tmp_path)
    assert losses[-1] < losses[0]
    assert still == {"mask_lowest", "order"}


# -- refusals --------------------------------------------------------------------------------------


def test_all_refusals_come_at_once() -> None:
    n = helper.make_node
    nodes = [
        n("Cast", ["x"], ["a"], name="narrow", to=onnx.TensorProto.INT16),
        n("Cast", ["a"], ["b"], name="widen", to=onnx.TensorProto.FLOAT),
        n("ReduceProd", ["k"], ["c"], name="product"),
    ]
    inputs = {"x": (np.float32, ["batch", 2]), "k": (np.int64, [3])}
    with pytest.raises(ConversionError) as caught:
        written(model_of(nodes, inputs, ["b", "c"]))
    assert caught.value.missing == {"Cast": ("narrow",), "ReduceProd": ("product",)}
    assert "int16" in str(caught.value).lower()


def test_operators_without_counterpart_are_named() -> None:
    x = normal(0, 2, 6)
    with pytest.raises(ConversionError) as caught:
        written(one("Unique", [x], outputs=1))
    assert caught.value.missing == {"Unique": ("n",)}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: one("MatMul", [np.ones((2, 3), np.int64), np.ones((3, 2), np.int64)]), "int64"),
        (lambda: one("LRN", [normal(0, 1, 4, 2, 2)], size=2), "odd size"),
        (lambda: one("Mod", [normal(0, 4), normal(1, 4)], fmod=0), "infinities"),
        (lambda: one("ArgMax", [np.ones((2, 3), np.int64)]), "int64"),
        (lambda: one("Slice", [normal(0, 2, 3), *(np.array([v]) for v in (2, 2, 1))]), "elements"),
        (lambda: one("Relu", [np.float32(1).reshape(())]), "scalars"),
        (lambda: one("Add", [np.ones(3, np.uint16), np.ones(3, np.uint16)]), "UINT16"),
    ],
    ids=["integer product", "lrn", "mod", "argmax", "empty slice", "scalar input", "uint16"],
)
def test_what_mxnet_cannot_say_exactly(model, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        written(model())


def test_plugins_teach_operators() -> None:
    from attar.hooks import hookimpl

    class Plugin:
        @hookimpl
        def attar_lowerings(self, framework: str):
            return (
                {"Unique": lambda ctx, view: ctx.op("sort", ctx.get(view))} if framework == "mxnet" else None
            )

    registry = Registry.discover()
    registry.register(Plugin(), name="teacher")
    exported = write_symbol(one("Unique", [normal(0, 6)]), registry=registry)
    assert [n.op for n in exported.native.symbol.nodes] == ["null", "sort"]
