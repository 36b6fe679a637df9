"""Which files make an MXNet model, how their ages differ, and what is refused; all without MXNet."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from mxnet_files import Array, batch_norm_symbol, files, load, mlp, mlp_output, near, rand, run
from mxnet_nets import with_mxnet

from attar import graph as irgraph
from attar.adapters import Loaded, find_adapter
from attar.errors import InputError
from attar.registry import Registry
from attar.runtime import OnnxRuntime
from attar_mxnet.reading import _FAMILIES, LIFTINGS
from attar_mxnet.symbol_json import (
    Entry,
    SymbolGraph,
    parse_symbol,
    read_symbol,
    symbol_text,
    write_symbol_file,
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return with_mxnet()


def test_a_pair_of_files_is_one_model_from_either_end(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    symbol = files(tmp_path, graph, weights)
    x = rand(4, 5)
    for source in (symbol, str(symbol), tmp_path / "net-0000.params", tmp_path / "net"):
        loaded = load(registry, source)
        near(run(loaded, x)[0], mlp_output(weights, x))
    assert find_adapter(symbol, registry).name == "mxnet"
    assert find_adapter(tmp_path / "net-0000.params", registry).name == "mxnet"
    assert [str(v) for v in loaded.model.graph.inputs] == ['%"data"<FLOAT,[batch,5]>']
    assert [v.name for v in loaded.model.graph.outputs] == ["softmax_output"]
    assert set(loaded.model.graph.initializers) == set(weights)
    assert [n.name for n in loaded.model.graph] == ["fc1", "relu1", "fc2", "softmax"]
    assert irgraph.provenance(loaded.model) == {"framework": "mxnet", "source": "net-symbol.json"}
    assert loaded.model.opset_imports[""] == 21


def test_the_last_epoch_is_taken_unless_another_is_asked_for(tmp_path: Path, registry: Registry) -> None:
    graph, first = mlp()
    second = {n: a * 2 for n, a in first.items()}
    files(tmp_path, graph, first, epoch=3)
    symbol = files(tmp_path, graph, second, epoch=12)
    files(tmp_path, graph, first, name="other", epoch=99)
    x = rand(4, 5)
    near(run(load(registry, symbol), x)[0], mlp_output(second, x))
    near(run(load(registry, symbol, epoch=3), x)[0], mlp_output(first, x))
    for weights in (tmp_path / "net-0003.params", first):
        near(run(load(registry, symbol, params=weights), x)[0], mlp_output(first, x))
    with pytest.raises(InputError, match=r"no net-0005\.params"):
        load(registry, symbol, epoch=5)


def test_files_that_are_not_there(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    symbol = files(tmp_path, graph, weights)
    (tmp_path / "net-0000.params").rename(tmp_path / "elsewhere.params")
    with pytest.raises(InputError, match=r"no parameters for net-symbol\.json") as caught:
        load(registry, symbol)
    assert "params=" in str(caught.value)
    symbol.rename(tmp_path / "a-symbol.json")
    (tmp_path / "b-symbol.json").write_text("{}")
    with pytest.raises(InputError, match="weights only") as caught:
        load(registry, tmp_path / "elsewhere.params")
    assert "symbol=" in str(caught.value)
    loaded = load(registry, tmp_path / "elsewhere.params", symbol=tmp_path / "a-symbol.json")
    assert len(loaded.model.graph) == 4


def test_a_parameter_that_is_missing_is_named(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    del weights["fc2_weight"]
    with pytest.raises(InputError, match="fc2_weight"):
        load(registry, files(tmp_path, graph, weights))


def test_structural_names_are_matched_only_where_they_can_mean_one_thing(
    tmp_path: Path, registry: Registry
) -> None:
    graph, weights = mlp()
    symbol = files(tmp_path, graph, weights)
    named = {"1.weight": weights["fc2_weight"], "1.bias": weights["fc2_bias"]}
    named |= {"0.weight": weights["fc1_weight"], "0.bias": weights["fc1_bias"]}
    x = rand(4, 5)
    loaded = load(registry, symbol, params=named)
    near(run(loaded, x)[0], mlp_output(weights, x))
    for node in graph.nodes:  # the same sizes twice: either order fits
        if node.op == "FullyConnected":
            node.attrs["num_hidden"] = "5"
    twice = {
        "0.weight": rand(5, 5),
        "0.bias": rand(5),
        "1.weight": rand(5, 5, seed=1),
        "1.bias": rand(5, seed=1),
    }
    write_symbol_file(symbol, graph)
    with pytest.raises(InputError, match="structural names") as caught:
        load(registry, symbol, params=twice)
    assert "export" in str(caught.value)


def test_symbols_are_written_as_they_were_read(tmp_path: Path) -> None:
    graph, _ = mlp()
    graph.np_shape = True
    graph.nodes[1].attrs["__shape__"] = "(8, 0)"
    assert parse_symbol(symbol_text(graph)) == graph
    write_symbol_file(tmp_path / "net-symbol.json", graph)
    assert read_symbol(tmp_path / "net-symbol.json") == graph


def aged(graph: SymbolGraph, age: str) -> str:
    """The JSON of `graph` as older versions wrote it."""
    plain = json.loads(symbol_text(graph))
    if age == "0.9":
        plain["attrs"] = {"mxnet_version": ["int", 903]}
        for node in plain["nodes"]:
            node["attr"] = node.pop("attrs", {})
    if age == "0.8":
        drop = {n["name"] for n in plain["nodes"] if "moving" in n["name"]}
        kept = [i for i, n in enumerate(plain["nodes"]) if n["name"] not in drop]
        new = {old: number for number, old in enumerate(kept)}
        for node in plain["nodes"]:
            node["param"] = {k: v.replace("1, 1", "1L, 1L") for k, v in node.pop("attrs", {}).items()}
            node["inputs"] = [[new[e[0]], e[1]] for e in node["inputs"] if e[0] in new]
            node["backward_source_id"] = -1
        plain["nodes"] = [plain["nodes"][i] for i in kept]
        plain["heads"] = [[new[e[0]], e[1]] for e in plain["heads"]]
        del plain["attrs"]
    return json.dumps(plain)


@pytest.mark.parametrize("age", ["1.9", "0.9", "0.8"])
@pytest.mark.parametrize("fixed", [None, "False"])
def test_every_age_and_the_default_of_fix_gamma(
    age: str, fixed: str | None, tmp_path: Path, registry: Registry
) -> None:
    graph, weights = batch_norm_symbol()
    if fixed:
        graph.nodes[-1].attrs["fix_gamma"] = fixed
    symbol = files(tmp_path, graph, weights)
    symbol.write_text(aged(graph, age))
    x = rand(2, 2, 4, 4)
    y = np.einsum("oi,nihw->nohw", weights["conv_weight"][:, :, 0, 0], x)
    gamma, beta, mean, variance = (
        weights[f"bn_{n}"][:, None, None] for n in ("gamma", "beta", "moving_mean", "moving_var")
    )
    y = (y - mean) / np.sqrt(variance + 1e-3) * (gamma if fixed else 1) + beta
    near(run(load(registry, symbol), x)[0], y)


def test_channels_last(tmp_path: Path, registry: Registry) -> None:
    """MXNet runs NHWC on GPUs only, so the wanted values are those of the same network channels first."""
    outputs = []
    x, w = rand(2, 3, 6, 5), rand(4, 3, 3, 3)
    for layout in ("NCHW", "NHWC"):
        graph = SymbolGraph()
        attrs = {"kernel": "(3, 3)", "num_filter": "4", "no_bias": "True", "layout": layout}
        y = graph.add("Convolution", "conv", [graph.variable("data"), graph.variable("conv_weight")], **attrs)
        y = graph.add("Pooling", "pool", [y], kernel="(2, 2)", pool_type="max", layout=layout)
        graph.heads = [graph.add("Pooling", "gap", [y], global_pool="True", pool_type="avg", layout=layout)]
        last = layout == "NHWC"
        weight = w.transpose(0, 2, 3, 1).copy() if last else w
        loaded = load(registry, files(tmp_path, graph, {"conv_weight": weight}, name=layout))
        outputs.append(run(loaded, x.transpose(0, 2, 3, 1).copy() if last else x)[0].reshape(2, 4))
    near(outputs[0], outputs[1])


def flattened(size: int) -> tuple[SymbolGraph, dict[str, Array]]:
    graph = SymbolGraph()
    x = graph.add(
        "Convolution",
        "conv",
        [graph.variable("data"), graph.variable("conv_weight")],
        kernel="(3, 3)",
        num_filter="2",
        no_bias="True",
    )
    x = graph.add("Flatten", "flat", [x])
    graph.heads = [
        graph.add("FullyConnected", "fc", [x, graph.variable("fc_weight")], num_hidden="3", no_bias="1")
    ]
    return graph, {"conv_weight": rand(2, 1, 3, 3), "fc_weight": rand(3, 2 * (size - 2) ** 2)}


def test_the_image_size_follows_from_the_weights(tmp_path: Path, registry: Registry) -> None:
    symbol = files(tmp_path, *flattened(28))
    loaded = load(registry, symbol)
    assert str(loaded.model.graph.inputs[0]) == '%"data"<FLOAT,[batch,1,28,28]>'
    assert any("28 x 28" in note for note in loaded.notes)
    given = load(registry, symbol, shapes={"data": (None, 1, 28, 28)})
    assert given.notes == ()
    fixed = load(registry, symbol, shapes={"data": (4, 1, 28, 28)}, dynamic=None)
    assert str(fixed.model.graph.inputs[0]) == '%"data"<FLOAT,[4,1,28,28]>'
    with pytest.raises(InputError, match="'fc' does not fit"):
        load(registry, symbol, shapes={"data": (None, 1, 27, 28)})


def test_shapes_hints_and_types_of_inputs(tmp_path: Path, registry: Registry) -> None:
    graph = SymbolGraph()
    ids = graph.variable("ids", __dtype__="4", __shape__="(0, 7)")
    table = graph.variable("table_weight")
    graph.heads = [graph.add("Embedding", "emb", [ids, table], input_dim="9", output_dim="2")]
    symbol = files(tmp_path, graph, {"table_weight": rand(9, 2)})
    assert str(load(registry, symbol).model.graph.inputs[0]) == '%"ids"<INT32,[batch,7]>'
    changed = load(registry, symbol, dtypes={"ids": np.int64}, shapes={"ids": ("batch", "length")})
    assert str(changed.model.graph.inputs[0]) == '%"ids"<INT64,[batch,length]>'
    seen = load(registry, symbol, inputs=np.zeros((3, 4), np.int32), dynamic={"ids": {1: "length"}})
    assert str(seen.model.graph.inputs[0]) == '%"ids"<INT32,[3,length]>'


def test_doubles_stand_for_singles(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    loaded = load(registry, files(tmp_path, graph, weights), inputs=rand(4, 5).astype(np.float64))
    assert loaded.example is not None
    assert loaded.example["data"].dtype == np.float32
    assert str(loaded.model.graph.inputs[0]) == '%"data"<FLOAT,[batch,5]>'


def test_no_operator_is_lifted_twice() -> None:
    assert len(LIFTINGS) == sum(map(len, _FAMILIES))
    assert len(LIFTINGS) > 500


def test_reading_files_does_not_import_mxnet(tmp_path: Path) -> None:
    symbol = files(tmp_path, *mlp())
    code = f"""
import sys
from attar_mxnet.adapter import MxnetAdapter
loaded = MxnetAdapter().load({str(symbol)!r})
assert len(loaded.model.graph) == 4
assert "mxnet" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_head_may_be_an_input_a_weight_or_named_twice(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    last = graph.heads[0]
    graph.heads = [last, Entry(0), last, Entry(1)]
    x = rand(4, 5)
    found = run(load(registry, files(tmp_path, graph, weights)), x)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], x)
    np.testing.assert_array_equal(found[3], weights["fc1_weight"])


def _accuracy(loaded: Loaded, images: Array, labels: Array) -> float:
    session = OnnxRuntime().open(loaded.model)
    name = loaded.model.graph.inputs[0].name
    found = [session.run({name: images[i : i + 50]})[0].argmax(1) for i in range(0, len(images), 50)]
    return float((np.concatenate(found) == labels).mean())


def test_trained_files_keep_their_accuracy(attar_data: Path, registry: Registry) -> None:
    code = attar_data / "load.py"
    spec = importlib.util.spec_from_file_location("attar_test_data", code)
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    folder = attar_data / "mxnet_models"
    for name, file, scale, wanted in (
        ("mnist", "mnist-symbol.json", lambda v: v / 255, 0.9912),
        ("fashion_mnist", "fashion-mnist-0039.params", lambda v: (v / 255 - 0.13) / 0.31, 0.9154),
    ):
        images, labels = data.grey(name, "dev")
        images = scale(images.astype(np.float32))[:, None].astype(np.float32)
        loaded = load(registry, folder / file)
        assert [v.name for v in loaded.model.graph.inputs] == ["data"]
        assert _accuracy(loaded, images, labels) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.slow
def test_the_trained_mobilenet_keeps_its_accuracy(attar_data: Path, registry: Registry) -> None:
    code = attar_data / "load.py"
    spec = importlib.util.spec_from_file_location("attar_test_data", code)
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    images, labels = data.imagenet("dev")
    batch = data.mobilenet_v1(images).transpose(0, 3, 1, 2).astype(np.float32)
    loaded = load(registry, attar_data / "mobilenet_v1_075" / "mobilenet_v1_075_224-symbol.json")
    assert isinstance(loaded.model, ir.Model)
    assert _accuracy(loaded, batch, labels) == pytest.approx(0.708, abs=2e-3)
