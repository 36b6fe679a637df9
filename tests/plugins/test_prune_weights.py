"""`prune.weights`: how many zeros and where, what moving the others is worth, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attar import graph, invariants, solve
from attar.calibration import as_data
from attar.context import Context
from attar.errors import InputError, RecipeError, Refused, VerifyError
from attar.registry import default_registry
from attar.run import run_pass, run_recipe
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar.testing import conformance
from attar.testing.build import Net
from attar_prune import masks, sparse
from attar_prune.weights import Weights

RNG = np.random.default_rng(0)
REGISTRY, RUNTIME = default_registry(), OnnxRuntime()
MIX = RNG.standard_normal((6, 16)).astype(np.float32)


def network(*, bias: bool = True) -> Any:
    net = Net("n", 3)
    x = net.input("x", "N", 16, 8, 8)
    y = net.op("Relu", net.conv(x, 16, 32, bias=bias))
    y = net.op("Relu", net.conv(y, 32, 32, (1, 1), bias=bias))
    y = net.dense(net.pooled(y), 32, 24)
    return net.model(y=net.dense(net.op("Relu", y), 24, 20, gemm=False))


def images(count: int, seed: int) -> Any:
    """Images whose channels are correlated, as those of real layers are."""
    rng = np.random.default_rng(seed)
    parts = np.einsum("nchw,cd->ndhw", rng.standard_normal((count, 6, 8, 8)), MIX) / 3
    return (parts + 0.2 * rng.standard_normal(parts.shape)).astype(np.float32)


def context(model: Any, *, data: bool = True) -> Context:
    batches = [{"x": images(16, seed)} for seed in range(4)]
    return Context(
        REGISTRY, REGISTRY.get_target("cpu"), RUNTIME, as_data(batches, input_specs(model)) if data else None
    )


def weights_of(model: Any) -> dict[str, Any]:
    kinds = ("Conv", "Gemm", "MatMul")
    return {str(n.name): graph.const_array(n.inputs[1]) for n in model.graph if n.op_type in kinds}


def share(model: Any) -> dict[str, float]:
    return {name: float((array == 0).mean()) for name, array in weights_of(model).items()}


def loss(model: Any, after: Any) -> float:
    feeds = {"x": images(64, 99)}
    wanted, got = (RUNTIME.open(m).run(feeds)[0] for m in (model, after))
    return float(((got - wanted) ** 2).mean() / ((wanted - wanted.mean(0)) ** 2).mean())


def hessian(k: int, n: int = 400) -> Any:
    x = RNG.standard_normal((n, k // 2)) @ RNG.standard_normal((k // 2, k)) + 0.3 * RNG.standard_normal(
        (n, k)
    )
    return solve.damped((x.T @ x / n)[None], 0.01)


# -- the algebra ---------------------------------------------------------------------------------------------


def test_settling_is_the_least_squares_fit_of_each_row() -> None:
    rows, h = RNG.standard_normal((1, 7, 20)), hessian(20)
    mask = RNG.random(rows.shape) < 0.5
    found = sparse.settle(rows, h, mask, rounds=200)
    for i, gone in enumerate(mask[0]):
        wanted = solve.refit(rows[0, i : i + 1], h[0], ~gone, damping=0.0)
        np.testing.assert_allclose(found[0, i, ~gone], wanted[0], atol=1e-5)
    assert not found[mask].any()


def test_obs_is_the_cost_of_one_removal_that_the_others_make_good() -> None:
    rows, h = RNG.standard_normal((1, 1, 12)), hessian(12)
    saliency = sparse.obs(rows, np.linalg.inv(h))
    for k in range(12):
        mask = np.arange(12)[None, None] == k
        settled = sparse.settle(rows, h, mask, rounds=200)
        assert solve.cost(rows - settled, h).sum() == pytest.approx(saliency[0, 0, k], rel=1e-4)


@pytest.mark.parametrize("pattern", [None, (2, 4), (1, 4)])
def test_each_refinement_costs_less(pattern: Any) -> None:
    rows, h = RNG.standard_normal((1, 48, 64)), hessian(64)
    ratio = 0.5 if pattern is None else 1 - pattern[0] / pattern[1]
    gone = None if pattern is None else (pattern[1] - pattern[0], pattern[1])

    def cost(new: Any) -> float:
        assert (new == 0).mean() == pytest.approx(ratio, abs=1e-3)
        return float(solve.cost(rows - new, h).sum())

    def mask(importance: Any) -> Any:
        return masks.lowest(importance, ratio) if pattern is None else masks.n_of_m(importance, *pattern)

    magnitude = cost(np.where(mask(np.abs(rows)), 0, rows))
    wanda = cost(np.where(mask(sparse.wanda(rows, h)), 0, rows))
    paper = cost(solve.sparsify(rows[0], h[0], ratio=ratio, pattern=gone)[None])
    settled = cost(sparse.sparsegpt(rows, h, ratio, gone))
    best = cost(sparse.best(rows, h, ratio, pattern=pattern))
    assert best <= settled < paper
    assert settled < min(magnitude, wanda)
    if ratio <= 0.5:  # at 75 % the greedy order alone may lose; settling makes it good
        assert paper < min(magnitude, wanda)


def test_masks() -> None:
    importance = np.array([[[4.0, 1, 3, 2], [8, 7, 6, 5]]])
    assert masks.lowest(importance, 0.5).tolist() == [[[True] * 4, [False] * 4]]
    assert masks.lowest(importance, 0.5, by_row=True).sum(-1).tolist() == [[2, 2]]
    assert masks.n_of_m(importance, 1, 2).tolist() == [
        [[False, True, False, True], [False, True, False, True]]
    ]
    assert masks.blocks(importance, (2, 2), 0.5).tolist() == [[[False, False, True, True]] * 2]
    odd = masks.blocks(RNG.random((1, 7, 9)), (2, 4), 0.5)
    assert odd.shape == (1, 7, 9)
    with pytest.raises(InputError):
        masks.n_of_m(importance, 2, 3)


def test_shares_meet_the_ratio_and_take_where_it_costs_least() -> None:
    # Losses that grow tenfold over the levels; the second layer is three times as sensitive.
    losses = {k: {r: s * 10 ** (2 * r) for r in sparse.LEVELS} for k, s in (("a", 1.0), ("b", 3.0))}
    sizes = {"a": 4000, "b": 4000}
    found = sparse.shares(losses, sizes, 0.5)
    assert sum(found[k] * sizes[k] for k in sizes) == pytest.approx(0.5 * 8000, rel=1e-6)
    assert found["a"] > found["b"] > 0
    grid = np.arange(0.0, 0.9, 0.01)  # brute force over all pairs that meet the ratio
    cost = lambda key, r: float(np.exp(np.interp(r, sparse.LEVELS, np.log(list(losses[key].values())))))  # noqa: E731
    best = min(
        (r for r in grid if 0.3 <= r <= 0.85 and 0.3 <= 1.0 - r <= 0.85),
        key=lambda r: cost("a", r) + cost("b", 1.0 - r),
    )
    assert found["a"] == pytest.approx(best, abs=0.03)
    assert sparse.shares(losses, sizes, 0.95) == pytest.approx({"a": 0.95, "b": 0.95}, abs=0.011)


# -- the pass ------------------------------------------------------------------------------------------------

SETTINGS = [
    Weights(),
    Weights(sequential=False),
    Weights(method="wanda"),
    Weights(method="magnitude"),
    Weights(method="magnitude", scope="row"),
    Weights(scope="row"),
    Weights(pattern="2:4"),
    Weights(pattern="1:4", method="magnitude"),
    Weights(block=(4, 2)),
    Weights(block=(1, 4), method="wanda"),
]


@pytest.mark.parametrize("step", SETTINGS, ids=str)
def test_every_weight_gets_its_share(step: Weights) -> None:
    model = network()
    after, record = run_pass(step, model, context(model))
    wanted = 1 - int(step.pattern[0]) / int(step.pattern[2]) if step.pattern else 0.5
    over_all = step == Weights() or step == Weights(sequential=False)
    arrays = [a for n in after.graph if (a := weights_of(after).get(str(n.name))) is not None]
    zeros = sum(int((a == 0).sum()) for a in arrays)
    assert zeros / sum(a.size for a in arrays) == pytest.approx(wanted, abs=0.03)
    for found in share(after).values():
        assert over_all or found == pytest.approx(wanted, abs=0.03)
    assert "are zero" in record.changes[0]
    assert all(s == 0 for s in share(model).values())
    noted = [invariants.held(n.inputs[1]) for n in after.graph if str(n.name) in weights_of(after)]
    assert all(h.zeros and bool(h.pattern) == bool(step.pattern) for h in noted)


def test_n_of_m_runs_along_the_input_channels() -> None:
    model = network()
    after, _ = run_pass(Weights(pattern="2:4"), model, context(model))
    for node in after.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            array = graph.const_array(node.inputs[1])
            axis = 0 if node.op_type == "MatMul" else 1
            parts = np.moveaxis(array, axis, -1).reshape(-1, 4)
            assert ((parts == 0).sum(axis=1) >= 2).all()


def test_methods_stand_in_the_order_that_the_papers_give() -> None:
    model = network()
    found = {}
    for name, step in {
        "over all": Weights(),
        "sequential": Weights(scope="layer"),
        "at once": Weights(scope="layer", sequential=False),
        "wanda": Weights(method="wanda"),
        "magnitude": Weights(method="magnitude"),
    }.items():
        after, _ = run_pass(step, model, context(model))
        found[name] = loss(model, after)
    assert max(found["sequential"], found["at once"]) < 0.5 * min(found["wanda"], found["magnitude"])
    assert found["sequential"] < found["at once"]
    assert found["over all"] < 0.6 * min(found["wanda"], found["magnitude"])


def test_without_biases_none_is_needed() -> None:
    model = network(bias=False)
    after, _ = run_pass(Weights(), model, context(model))
    plain, _ = run_pass(Weights(method="magnitude"), model, context(model))
    assert loss(model, after) < loss(model, plain)


def test_global_scope_takes_more_where_it_costs_less() -> None:
    model = network()
    for method in ("magnitude", "sparsegpt"):
        after, _ = run_pass(Weights(method=method, scope="global", sequential=False), model, context(model))
        arrays = weights_of(after).values()
        assert sum((a == 0).sum() for a in arrays) / sum(a.size for a in arrays) == pytest.approx(
            0.5, abs=0.02
        )
        assert np.ptp(list(share(after).values())) > 0.05


def test_a_threshold_takes_what_lies_below() -> None:
    model = network()
    after, _ = run_pass(Weights(method="magnitude", threshold=0.05), model, context(model, data=False))
    for name, array in weights_of(model).items():
        assert np.array_equal(weights_of(after)[name], np.where(np.abs(array) < 0.05, 0, array))


def test_zeros_survive_more_pruning_and_int8() -> None:
    from attar_quantize import Static

    model = network()
    recipe = [
        Weights(ratio=0.3),
        Weights(ratio=0.6, scope="layer"),
        Static(rounding="nearest", plan="everything"),
    ]
    after, steps, _ = run_recipe(recipe, model, context(model))
    assert not any(s.refused for s in steps)
    found = [
        (v.const_value.numpy() == 0).mean()
        for v in after.graph.initializers.values()
        if str(v.name).endswith("weight_quantized")
    ]
    assert len(found) == 4
    assert min(found) > 0.57


def test_a_later_pass_that_fills_the_zeros_is_stopped() -> None:
    from attar.passes import Pass

    class Fill(Pass, name="test.fill"):
        def apply(self, model: Any, ctx: Any) -> None:
            for node in model.graph:
                if node.op_type == "Gemm":
                    graph.replace_weight(node.inputs[1], graph.const_array(node.inputs[1]) + np.float32(1e-9))

    model = network()
    with pytest.raises(VerifyError, match="zeros"):
        run_recipe([Weights(method="magnitude"), Fill()], model, context(model))


def test_what_it_refuses_and_leaves() -> None:
    model = network()
    with pytest.raises(InputError, match="calibration"):
        run_pass(Weights(), model, context(model, data=False))
    with pytest.raises(Refused, match="sum over"):
        run_pass(Weights(depth=10**6), model, context(model))
    with pytest.raises(Refused, match="small enough"):
        run_pass(Weights(method="magnitude", threshold=1e-9), model, context(model))
    with pytest.raises(RecipeError, match="matches no weight"):
        run_pass(Weights(keep=("nothing*",)), model, context(model))
    _, record = run_pass(Weights(method="magnitude", keep=("gemm*",)), model, context(model))
    assert any(s.reason == "kept dense by option keep" for s in record.skipped)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "4:2"},
        {"pattern": "2of4"},
        {"pattern": "0:4"},
        {"block": (2,)},
        {"block": (2, 2), "pattern": "2:4"},
        {"threshold": 0.1},
        {"operators": ("Convv",)},
        {"ratio": 1.0},
        {"method": "random"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"prune\.weights"):
        Weights(**options)


SOME = ["residual_cnn", "depthwise_cnn", "shared_weight", "weight_in_if", "half", "attention", "quantized"]


@conformance(Weights(depth=4), models=SOME)
def test_conformance() -> None:
    pass


@pytest.mark.slow
@conformance(
    Weights(depth=4), Weights(method="magnitude", depth=1), Weights(method="wanda", pattern="2:4", depth=4)
)
def test_conformance_everywhere() -> None:
    pass


def test_a_pattern_may_spare_the_layers_that_need_their_weights() -> None:
    model = network()
    every, _ = run_pass(Weights(pattern="2:4"), model, context(model))
    some, record = run_pass(Weights(pattern="2:4", dense=0.5), model, context(model))
    spared = [name for name, found in share(some).items() if found == 0]
    numbers = {name: a.size for name, a in weights_of(model).items()}
    assert spared
    assert sum(numbers[n] for n in spared) <= 0.5 * sum(numbers.values())
    assert all(
        found == pytest.approx(0.5, abs=0.03) for name, found in share(some).items() if name not in spared
    )
    assert any("stays dense" in skip.reason for skip in record.skipped)
    assert loss(model, some) < loss(model, every)
    assert Weights(pattern="2:4").alternatives()[0] == Weights(pattern="2:4", dense=0.2)
