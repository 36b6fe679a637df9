"""The planner's choice is the cheapest of all, by trying all."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from quantize_models import context, is_quantized, normal, one_layer, quantize

from attar.context import Measured
from attar.costs import Cost, CostTable
from attar.errors import RecipeError, Refused
from attar.targets import Target, builtin_targets
from attar.testing.build import Net
from attar_quantize import Static
from attar_quantize.planner import Costs, plan
from attar_quantize.units import Plan, Unit, find_units

VNNI = next(t for t in builtin_targets() if t.name == "cpu-vnni")
COMPUTE_BONUS = 1.25  # what a compute unit may cost above float for being a quarter of the size


def random_net(rng: np.random.Generator) -> ir.Model:
    """Up to ten operators over values of one shape: chains, branches, joins, several outputs."""
    net = Net("random", int(rng.integers(1 << 30)))
    values = [net.input("x", 2, 4, 8, 8)]
    if rng.random() < 0.5:
        values.append(net.input("z", 2, 4, 8, 8))
    for _ in range(rng.integers(3, 10)):
        one, two = (values[int(i)] for i in rng.integers(max(0, len(values) - 4), len(values), 2))
        kind = rng.choice(["conv", "conv", "add", "mul", "sigmoid", "tanh", "softmax", "matmul"])
        made = {
            "conv": lambda x=one: net.conv(x, 4, 4),
            "add": lambda x=one, y=two: net.op("Add", x, y),
            "mul": lambda x=one, y=two: net.op("Mul", x, y),
            "sigmoid": lambda x=one: net.op("Sigmoid", x),
            "tanh": lambda x=one: net.op("Tanh", x),
            "softmax": lambda x=one: net.op("Softmax", x),
            "matmul": lambda x=one, y=two: net.op("MatMul", x, y),
        }[str(kind)]()
        values.append(made)
    made_values = values[1:] if len(net.inputs) == 1 else values[2:]
    shown = [v for v in made_values if not v.uses()] + [
        v for v in made_values if v.uses() and rng.random() < 0.2
    ]
    return net.model(**{f"out{i}": v for i, v in enumerate(shown)})


def random_costs(
    units: list[Unit], rng: np.random.Generator
) -> tuple[Target, Costs, dict[Unit, tuple[float, float]]]:
    """Random kernel times for each unit, and random prices of conversions (for values of 512 elements)."""
    times = {u: (float(rng.uniform(0, 10)), float(rng.uniform(0, 10))) for u in units}
    prices = rng.uniform(0, 6, 4)
    table = CostTable(
        {
            ("quantize", "int8"): Cost(float(prices[0]), 0, 0),
            ("dequantize", "int8"): Cost(float(prices[1]), 0, 0),
            ("layout", "int8"): Cost(float(prices[2]), 0, 0),
            ("layout", "float"): Cost(float(prices[3]), 0, 0),
        }
    )
    before = {u.main.name or "": t[0] for u, t in times.items()}
    after = {u.main.name or "": t[1] for u, t in times.items()}
    return dataclasses.replace(VNNI, costs=table), Costs(table, Measured(before, after)), times


def total(
    units: list[Unit],
    integer: set[Unit],
    table: CostTable,
    times: dict[Unit, tuple[float, float]],
    outputs: set[ir.Value],
) -> float:
    """What an assignment costs, from the definition."""
    cost = 0.0
    for unit in units:
        bonus = COMPUTE_BONUS if unit.main.op_type in ("Conv", "MatMul", "Gemm") else 1.0
        if unit.rule is None:
            continue  # in float whatever we do
        cost += times[unit][1] if unit in integer else times[unit][0] * bonus
    price = {k: table.estimate(k, "int8", elements=1) or 0.0 for k in ("quantize", "dequantize", "layout")}
    floats_turned = table.estimate("layout", "float", elements=1) or 0.0
    readers: dict[ir.Value, list[Unit]] = {}
    made: dict[ir.Value, Unit] = {}
    for unit in units:
        made[unit.output] = unit
        inside = {v for n in unit.nodes[:-1] for v in n.outputs}
        for value in {
            v for n in unit.nodes for v in n.inputs if v is not None and not v.is_initializer()
        } - inside:
            readers.setdefault(value, []).append(unit)
    for value in {*readers, *made}:
        source, users = made.get(value), readers.get(value, [])
        conv_reads = any(u.main.op_type == "Conv" for u in users)
        conv_makes = source is not None and source.main.op_type == "Conv"
        if source in integer:
            if value in outputs or not users or any(u not in integer for u in users):
                if source is not None and source.main.op_type in ("MatMul", "Gemm"):
                    continue  # the kernel writes float itself
                cost += price["dequantize"] + floats_turned * conv_reads + price["layout"] * conv_makes
        elif any(u in integer for u in users):
            cost += price["quantize"] + price["layout"] * conv_reads + floats_turned * conv_makes
    return cost


@pytest.mark.parametrize("seed", range(60))
def test_the_plan_is_the_cheapest_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_net(rng)
    units = find_units(model, VNNI)
    target, costs, times = random_costs(units, rng)
    found = plan(units, target, costs=costs)
    possible = [u for u in units if u.rule is not None]
    outputs = set(model.graph.outputs)
    best = min(
        total(units, set(chosen), target.costs, times, outputs)
        for n in range(len(possible) + 1)
        for chosen in itertools.combinations(possible, n)
    )
    assert total(units, found.integer, target.costs, times, outputs) == pytest.approx(best, abs=1e-9)


def test_the_random_nets_are_not_trivial() -> None:
    """Plans of all float or all integer would prove little."""
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        units = find_units(random_net(rng), VNNI)
        target, costs, _ = random_costs(units, rng)
        possible = sum(u.rule is not None for u in units)
        if possible > 2:
            shares.append(len(plan(units, target, costs=costs).integer) / possible)
    assert len(shares) > 40
    assert sum(0 < s < 1 for s in shares) > len(shares) / 3


def chain() -> ir.Model:
    """Conv - Conv - Conv, ends in Softmax."""

    def make(net: Net, x: ir.Value) -> ir.Value:
        for _ in range(3):
            x = net.op("Relu", net.conv(x, 8, 8))
        return net.op("Softmax", x)

    return one_layer(make, 1, 8, 16, 16)


def costs_of(conv: tuple[float, float], convert: float) -> CostTable:
    return CostTable(
        {
            ("conv.spatial", "float"): Cost(conv[0], 0, 0),
            ("conv.spatial", "int8"): Cost(conv[1], 0, 0),
            ("quantize", "int8"): Cost(convert, 0, 0),
            ("dequantize", "int8"): Cost(convert, 0, 0),
        }
    )


@pytest.mark.parametrize(
    ("conv", "convert", "expected"),
    [
        ((10, 5), 1, 3),
        ((10, 5), 100, 0),
        ((5, 10), 1, 0),
        ((10, 11), 0, 3),
        ((10, 8), 6.7, 3),
        ((10, 8), 6.8, 0),
    ],
)
def test_conversions_are_weighed_against_what_kernels_save(
    conv: tuple[float, float], convert: float, expected: int
) -> None:
    """Three convolutions save 3 x (1.25 float - int8); the island pays for one Q and one DQ."""
    assert (3 * (1.25 * conv[0] - conv[1]) > 2 * convert) == (expected == 3)
    target = dataclasses.replace(VNNI, costs=costs_of(conv, convert))
    units = find_units(chain(), target)
    found = plan(units, target)
    convs = [u for u in units if u.main.op_type == "Conv"]
    assert sum(u in found.integer for u in convs) == expected
    for unit in convs:
        assert (unit in found.integer) != bool(found.reasons.get(unit))
    for reason in found.reasons.values():
        assert reason


def test_everything_ignores_costs_but_not_reasons() -> None:
    target = dataclasses.replace(VNNI, costs=costs_of((1, 1000), 1000))
    units = find_units(chain(), target)
    middle = [u for u in units if u.main.op_type == "Conv"][1]
    found = plan(units, target, everything=True, kept={middle: "because"})
    assert [u in found.integer for u in units if u.main.op_type == "Conv"] == [True, False, True]
    assert found.reasons[middle] == "because"


def test_units_take_in_what_their_kernel_absorbs() -> None:
    net = Net("absorb", 3)
    x = net.op("Relu", net.conv(net.input("x", 1, 4, 8, 8), 4, 8))  # absorbed
    y = net.conv(x, 8, 8)
    z = net.op("Relu", y)  # not absorbed: y is read twice
    w = net.op("Add", z, y)
    h = net.op("Relu", net.dense(net.op("Flatten", w), 512, 4, gemm=False))  # MatMul, Add, Relu
    model = net.model(out=h)
    kinds = [[n.op_type for n in u.nodes] for u in find_units(model, VNNI)]
    assert kinds == [["Conv", "Relu"], ["Conv"], ["Relu"], ["Add"], ["Flatten"], ["MatMul", "Add", "Relu"]]
    (matmul,) = (u for u in find_units(model, VNNI) if u.main.op_type == "MatMul")
    assert matmul.macs == 512 * 4
    (first, second) = (u for u in find_units(model, VNNI) if u.main.op_type == "Conv")
    assert (first.macs, second.macs) == (64 * 8 * 4 * 9, 64 * 8 * 8 * 9)


# -- what the caller says --------------------------------------------------------------------------------


def named_chain() -> ir.Model:
    model = chain()
    for i, node in enumerate(n for n in model.graph if n.op_type == "Conv"):
        node.name = f"block/{i}/conv"
    return model


def integers(model: ir.Model) -> list[bool]:
    return [is_quantized(n) for n in model.graph if n.op_type == "Conv"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("block/1/conv",), [True, False, True]),
        (("block/*/conv",), None),
        (("block/?/conv",), None),
        (("block/0*", "*2/conv"), [False, True, False]),
        ((), [True, True, True]),
    ],
)
def test_keep_float_patterns(patterns: tuple[str, ...], expected: list[bool] | None) -> None:
    model, feeds = named_chain(), normal("x", 1, 8, 16, 16)
    if expected is None:
        with pytest.raises(Refused) as refusal:
            quantize(model, feeds, keep_float=patterns)
        assert {why for _, why in refusal.value.nodes} == {"kept in float by option keep_float"}
        return
    quantized, ctx = quantize(model, feeds, keep_float=patterns)
    assert integers(quantized) == expected
    assert {s.reason for s in ctx.step.skipped} <= {"kept in float by option keep_float"}
    assert len(ctx.step.skipped) == expected.count(False)


def test_the_contracts_wishes_are_kept_with_their_reason() -> None:
    model, feeds = named_chain(), normal("x", 1, 8, 16, 16)
    ctx = context(model, feeds)
    ctx.keep_float = {"block/0/conv": "too sensitive"}
    Static(plan="everything").apply(model, ctx)
    assert integers(model) == [False, True, True]
    assert [(s.name, s.reason) for s in ctx.step.skipped] == [("block/0/conv", "too sensitive")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep_float": ("blok/1/conv",)}, "keep_float"),
        ({"operators": ("Convolution",)}, "Convolution"),
        ({"observer": "mode"}, "unknown observer 'mode'"),
    ],
)
def test_names_that_match_nothing_are_recipe_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        quantize(named_chain(), normal("x", 1, 8, 16, 16), **options)


def test_every_compute_unit_in_float_has_a_reason() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        units = find_units(random_net(rng), VNNI)
        target, costs, _ = random_costs(units, rng)
        found: Plan = plan(units, target, costs=costs)
        for unit in units:
            if unit.main.op_type in ("Conv", "MatMul", "Gemm") and unit not in found.integer:
                assert found.reasons[unit]
