"""MXNet files that are damaged, odd or beyond what ONNX can say: refused by name, never an accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mxnet_files import Array, batch_norm_symbol, files, load, mlp, mlp_output, near, rand, run
from mxnet_nets import with_mxnet

from attar.errors import ConversionError, InputError
from attar.hooks import hookimpl
from attar.registry import Registry
from attar_mxnet.adapter import MxnetAdapter
from attar_mxnet.symbol_json import Entry, SymbolGraph


@pytest.fixture(scope="module")
def registry() -> Registry:
    return with_mxnet()


def test_a_shape_that_nobody_wrote_is_asked_for(tmp_path: Path, registry: Registry) -> None:
    graph = SymbolGraph()
    graph.heads = [graph.add("transpose", "t", [graph.variable("left")])]
    symbol = files(tmp_path, graph, {})
    with pytest.raises(InputError, match="'left' is nowhere written") as caught:
        load(registry, symbol)
    assert "shapes=" in str(caught.value)
    assert len(load(registry, symbol, shapes={"left": (None, 3, 4)}).model.graph) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shapes": {"date": (1, 5)}}, "'data'"),
        ({"inputs": {"x": rand(1, 5)}}, "the model has"),
        ({"inputs": [rand(1, 5), rand(1, 5)]}, "has 2"),
        ({"inputs": "words"}, "no numbers"),
        ({"inputs": rand(1, 6)}, "'fc1' does not fit"),
        ({"shape": (1, 5)}, "shapes"),
        ({"params": 3}, "a path, or a mapping"),
        ({"dynamic": {"data": {7: "x"}}, "inputs": rand(1, 5)}, "names axis 7"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(
    options: dict[str, Any], says: str, tmp_path: Path, registry: Registry
) -> None:
    graph, weights = mlp()
    with pytest.raises(InputError) as caught:
        load(registry, files(tmp_path, graph, weights), **options)
    assert says in str(caught.value)


def test_all_missing_operators_at_once(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    x = graph.heads[0]
    x = graph.add("_contrib_fft", "far", [x])
    x = graph.add("_contrib_hawkesll", "hawk", [x])
    graph.heads = [graph.add("_contrib_fft", "far2", [x])]
    with pytest.raises(ConversionError) as caught:
        load(registry, files(tmp_path, graph, weights))
    assert caught.value.missing == {"_contrib_fft": ("far", "far2"), "_contrib_hawkesll": ("hawk",)}


def test_nodes_that_cannot_be_said_are_listed_together(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    x = graph.heads[0]
    a = graph.add("Dropout", "drop", [x], mode="always")
    b = graph.add("take", "strict", [x, x], mode="raise")
    graph.heads = [graph.add("elemwise_add", "sum", [a, b])]
    with pytest.raises(ConversionError) as caught:
        load(registry, files(tmp_path, graph, weights))
    assert set(caught.value.missing) == {"Dropout", "take"}


def test_operators_in_python_are_refused_by_name(tmp_path: Path, registry: Registry) -> None:
    graph, weights = mlp()
    graph.heads = [graph.add("Custom", "mine", [graph.heads[0]], op_type="evil")]
    with pytest.raises(ConversionError, match="Custom: mine") as caught:
        load(registry, files(tmp_path, graph, weights))
    assert "Python" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a JSON file"),
        ("[1, 2]", "not an MXNet symbol"),
        ("[" * 100000, "not a JSON file"),
        ('{"nodes": [], "heads": []}', "without outputs"),
        ('{"nodes": [{"op": "relu", "name": "a", "inputs": [[0, 0, 0]]}], "heads": [[0]]}', "before it"),
        ('{"nodes": [{"op": "null", "name": "a"}], "heads": [[3, 0, 0]]}', "takes node 3"),
        ('{"nodes": [{"op": "null", "name": 5}], "heads": [[0, 0, 0]]}', "no text"),
        ('{"nodes": [{"op": "null", "name": "a", "attrs": 5}], "heads": [[0]]}', "not a mapping"),
        ('{"nodes": [{"op": "null", "name": "a"}], "heads": [[0, -1]]}', "does not name"),
        ('{"nodes": [{"name": "a"}], "heads": [[0]]}', "no operator"),
    ],
)  # fmt: skip
def test_damaged_symbols(content: str, says: str, tmp_path: Path, registry: Registry) -> None:
    symbol = files(tmp_path, *mlp())
    symbol.write_text(content)
    with pytest.raises(InputError, match=r"net-symbol\.json") as caught:
        load(registry, symbol)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("op", "attrs", "says"),
    [
        ("FullyConnected", {"num_hidden": "many", "no_bias": "1"}, "num_hidden is 'many'"),
        ("Convolution", {"num_filter": "3", "no_bias": "1"}, "has no kernel"),
        ("FullyConnected", {"num_hidden": "3"}, "takes 3 inputs"),
    ],
)  # fmt: skip
def test_attributes_that_cannot_be_read(
    op: str, attrs: dict[str, str], says: str, tmp_path: Path, registry: Registry
) -> None:
    graph = SymbolGraph()
    graph.heads = [graph.add(op, "layer", [graph.variable("data"), graph.variable("w_weight")], **attrs)]
    with pytest.raises(InputError, match="'layer'") as caught:
        load(registry, files(tmp_path, graph, {"w_weight": rand(3, 5)}), shapes={"data": (None, 5)})
    assert says in str(caught.value)


def test_a_plugin_teaches_an_operator(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def attar_liftings(self, framework: str) -> dict[str, Any] | None:
            return (
                {"my_twice": lambda ctx, op: ctx.emit("Add", op.input(0), op.input(0))}
                if framework == "mxnet"
                else None
            )

    registry = with_mxnet()
    registry.register(Plugin(), name="mine")
    graph, weights = mlp()
    graph.heads = [graph.add("my_twice", "twice", [graph.heads[0]])]
    x = rand(4, 5)
    loaded = load(registry, files(tmp_path, graph, weights))
    near(run(loaded, x)[0], 2 * mlp_output(weights, x))
    assert loaded.model.graph[-1].name == "twice"


ODD = st.sampled_from(
    (
        *("", "None", "-1", "0", "7", "1e30", "99999999999999999999", "nan", "inf", "True", "valid", "full"),
        *("(", "()", "(1,)", "(0, 0)", "(-1, -1)", "(9999999999, 9999999999)", "(3, 3, 3)", "(1L, 2L)"),
        *("[2,2]", "\x00", "float16", "é"),
    )
)


def deep() -> tuple[SymbolGraph, dict[str, Array]]:
    """A network with many kinds of attributes."""
    graph, weights = batch_norm_symbol()
    x = graph.add("Pooling", "pool", graph.heads, kernel="(2, 2)", stride="(2, 2)", pooling_convention="full")
    x = graph.add("LeakyReLU", "act", [x], act_type="leaky", slope="0.1")
    x = graph.add(
        "Pad", "pad", [x], mode="constant", pad_width="(0, 0, 0, 0, 1, 1, 1, 1)", constant_value="1"
    )
    x = graph.add("slice", "cut", [x], begin="(None, 0, 1)", end="(None, 2, None)", step="(1, 1, 1)")
    x = graph.add("Reshape", "shape", [x], shape="(0, -3, -2)", reverse="False")
    x = graph.add("SliceChannel", "split", [x], num_outputs="2", axis="1", squeeze_axis="False")
    x = graph.add("Concat", "join", [x, Entry(x.node, 1)], dim="1", num_args="2")
    x = graph.add("sum", "sum", [x], axis="(2,)", keepdims="True", exclude="0")
    x = graph.add("topk", "top", [x], k="2", axis="1", ret_typ="value", is_ascend="0")
    x = graph.add("one_hot", "hot", [x], depth="4", on_value="1", dtype="float32")
    x = graph.add("_plus_scalar", "plus", [x], scalar="2")
    graph.heads = [x]
    return graph, weights


def test_the_network_with_many_attributes_is_read(tmp_path: Path, registry: Registry) -> None:
    graph, weights = deep()
    loaded = load(registry, files(tmp_path, graph, weights), shapes={"data": (None, 2, 6, 6)})
    assert run(loaded, rand(2, 2, 6, 6))[0].shape[-1] == 4


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_attributes_never_do_more_than_an_error(data: st.DataObject, tmp_path: Path) -> None:
    graph, weights = deep()
    named = [n for n in graph.nodes if n.attrs]
    for _ in range(data.draw(st.integers(1, 2))):
        node = data.draw(st.sampled_from(named))
        node.attrs[data.draw(st.sampled_from(sorted(node.attrs)))] = data.draw(ODD)
    try:
        MxnetAdapter().load(files(tmp_path, graph, weights), shapes={"data": (None, 2, 6, 6)})
    except (InputError, ConversionError):
        return
