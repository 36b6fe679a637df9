"""The factorizations against independent numpy: optimality, bounds, exact recovery."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.gram import Gram
from attar_factor import decompose
from attar_factor.budget import Offer, distribute, hull
from attar_factor.cp import cp, error, layers
from attar_factor.refit import solution
from attar_factor.separable import separate

Array = np.ndarray[Any, np.dtype[Any]]
quick = settings(deadline=None, max_examples=20)


def correlated(rng: np.random.Generator, count: int, depth: int, inner: int = 6) -> Array:
    """Inputs that lie near a subspace, with channels of different size."""
    mix = rng.standard_normal((inner, depth)) * rng.lognormal(0, 1, depth)
    return rng.standard_normal((count, inner)) @ mix + 0.2 * rng.standard_normal((count, depth))


@quick
@given(
    outputs=st.integers(1, 12), depth=st.integers(1, 12), groups=st.integers(1, 3), seed=st.integers(0, 10**6)
)
def test_without_data_it_is_the_truncated_svd(outputs: int, depth: int, groups: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((groups, outputs, depth))
    found = decompose.LowRank(weight, None)
    energy = (np.linalg.svd(weight, compute_uv=False) ** 2).sum(axis=0)
    for rank in range(1, min(outputs, depth) + 1):
        features, last = found.at(rank)
        lost = np.sum((weight - last @ features) ** 2)
        # Eckart and Young: no matrix of that rank comes nearer than the discarded singular values.
        # float64: what is lost is known to some roundings of the whole.
        assert abs(lost - energy[rank:].sum()) <= 1e-13 * energy.sum()
        assert abs(found.errors[rank] - energy[rank:].sum() / energy.sum()) <= 1e-13


@quick
@given(
    outputs=st.integers(2, 12), depth=st.integers(2, 12), rank=st.integers(1, 6), seed=st.integers(0, 10**6)
)
def test_with_data_no_other_matrix_of_that_rank_is_better(
    outputs: int, depth: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = correlated(rng, 400, depth)
    weight = rng.standard_normal((1, outputs, depth))
    rank = min(rank, outputs, depth)
    features, last = decompose.LowRank(weight, (x.T @ x)[None]).at(rank)
    lost = np.sum((x @ (weight - last @ features)[0].T) ** 2)
    # The outputs of any layer of that rank have that rank: the truncated SVD of the outputs bounds them all.
    singular = np.linalg.svd(x @ weight[0].T, compute_uv=False)
    np.testing.assert_allclose(lost, np.sum(singular[rank:] ** 2), rtol=1e-6, atol=1e-7 * np.sum(singular**2))


@pytest.mark.parametrize(("outputs", "depth"), [(24, 40), (40, 24)])
def test_data_aware_beats_plain_on_data_that_was_not_seen(outputs: int, depth: int) -> None:
    rng = np.random.default_rng(1)
    x = correlated(rng, 1200, depth)
    weight = rng.standard_normal((1, outputs, depth))
    seen, unseen = x[:600], x[600:]
    for rank in (2, 4, 8):
        lost = []
        for h in (None, (seen.T @ seen)[None] / len(seen)):
            features, last = decompose.LowRank(weight, h).at(rank)
            lost.append(np.sum((unseen @ (weight - last @ features)[0].T) ** 2))
        assert lost[1] < 0.6 * lost[0]


@quick
@given(st.integers(1, 8), st.integers(2, 6), st.integers(2, 4), st.integers(0, 10**6))
def test_last_layer_is_the_least_squares_solution(rank: int, outputs: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 50, 8))
    weight, features = rng.standard_normal((groups, outputs, 8)), rng.standard_normal((groups, rank, 8))
    last = decompose.best_last(weight, features, np.swapaxes(x, 1, 2) @ x)
    for g in range(groups):
        expected = np.linalg.lstsq(x[g] @ features[g].T, x[g] @ weight[g].T, rcond=None)[0].T
        best, got = (np.sum((x[g] @ (weight[g] - m @ features[g]).T) ** 2) for m in (expected, last[g]))
        # What is minimized is the error and `pull` |L|^2, so L* bounds what the damping may cost.
        inner = features[g] @ x[g].T @ x[g] @ features[g].T
        pull = max(decompose._TINY, 1e-10) * np.diagonal(inner).mean()
        rounding = 1e-12 * np.sum((x[g] @ weight[g].T) ** 2)
        assert best - rounding <= got <= best + 1.01 * pull * np.sum(expected**2) + rounding
        if np.linalg.cond(x[g] @ features[g].T) < 9:  # then the pull cannot be seen at all
            np.testing.assert_allclose(got, best, atol=1e-7 * np.sum((x[g] @ weight[g].T) ** 2))


def unfold(tensor: Array, axis: int) -> Array:
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)


@quick
@given(
    shape=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    inner=st.integers(1, 8),
    outer=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_tucker_keeps_the_bound_of_the_discarded_energy(
    shape: tuple[int, int], inner: int, outer: int, seed: int
) -> None:
    outputs, channels = shape
    inner, outer = min(inner, channels), min(outer, outputs, inner * 9)
    tensor = np.random.default_rng(seed).standard_normal((outputs, channels, 9))
    weight = tensor.reshape(1, outputs, -1)
    tucker = decompose.Tucker(weight, channels, inner, None, outputs_kept=outer)
    core, last = tucker.at(outer)
    made = np.einsum("os,srt,ri->oit", last[0], core, tucker.first)
    lost = np.sum((tensor - made) ** 2)
    discarded = [
        np.sum(np.linalg.svd(unfold(tensor, axis), compute_uv=False)[kept:] ** 2)
        for axis, kept in ((0, outer), (1, inner))
    ]
    # De Lathauwer et al. 2000: at most the energy discarded in all modes, at least that of the worst mode.
    assert max(discarded) - 1e-9 <= lost <= sum(discarded) + 1e-9
    np.testing.assert_allclose(tucker.errors[outer] * np.sum(tensor**2), lost, atol=1e-12 * np.sum(tensor**2))


@pytest.mark.parametrize("shape", [(8, 6, 9), (6, 8, 9), (12, 12, 3)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_cp_recovers_a_tensor_of_that_rank(shape: tuple[int, int, int], rank: int) -> None:
    rng = np.random.default_rng(rank)
    a, b, c = (rng.standard_normal((n, rank)) for n in shape)
    tensor = np.einsum("ir,jr,tr->ijt", a, b, c)
    found = cp(tensor, rank, np.random.default_rng(0))
    assert error(tensor, found) < 1e-12 * np.sum(tensor**2)
    # The decomposition is unique (Kruskal): the same directions, in some order and with some sign.
    unit = a / np.linalg.norm(a, axis=0)
    np.testing.assert_allclose(np.abs(unit.T @ found[0]).max(axis=1), 1.0, atol=1e-5)
    again = cp(tensor, rank, np.random.default_rng(0))
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def test_cp_as_layers_is_weighed_by_the_inputs() -> None:
    rng = np.random.default_rng(0)
    channels, taps = 6, 9
    weight = rng.standard_normal((1, 8, channels * taps))
    size = np.repeat(10.0 ** rng.uniform(-2, 1, channels), taps)
    h = np.diag(size**2)[None]
    lost = []
    for moments in (None, h):
        first, kernels, last, features = layers(weight, channels, 8, moments, np.random.default_rng(3))
        assert first.shape == (8, channels)
        assert kernels.shape == (8, taps)
        lost.append(decompose.cost(weight - last @ features, h))
    assert lost[1] < 0.3 * lost[0]


@quick
@given(rank=st.integers(1, 30), kernel=st.sampled_from([(3, 3), (1, 3), (5, 2)]), seed=st.integers(0, 10**6))
def test_spatial_is_the_truncated_svd_of_rows_by_columns(
    rank: int, kernel: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal((5, 4, *kernel))
    weight = tensor.reshape(1, 5, -1)
    rank = min(rank, 4 * kernel[0], 5 * kernel[1])
    first, features = decompose.spatial(weight, kernel, rank, None)
    last = decompose.best_last(weight, features, None)
    made = np.einsum("rih,orw->oihw", first, last[0].reshape(5, rank, kernel[1]))
    singular = np.linalg.svd(tensor.transpose(1, 2, 0, 3).reshape(4 * kernel[0], -1), compute_uv=False)
    np.testing.assert_allclose(
        np.sum((tensor - made) ** 2), np.sum(singular[rank:] ** 2), atol=1e-12 * np.sum(singular**2)
    )


@pytest.mark.parametrize("multiplier", [1, 2])
def test_separable_fit_is_exact_where_it_can_be_and_better_with_data(multiplier: int) -> None:
    rng = np.random.default_rng(multiplier)
    kernels = rng.standard_normal((5, multiplier, 9))
    point = rng.standard_normal((7, 5, multiplier))
    weight = np.einsum("oim,imt->oit", point, kernels).reshape(1, 7, 45)
    x = correlated(rng, 2000, 45, inner=20)
    h = (x[:1000].T @ x[:1000])[None] / 1000 + 1e-3 * np.eye(45)
    made = separate(weight, 5, multiplier, h)
    np.testing.assert_allclose(made.last @ made.features, weight, rtol=0, atol=1e-8)
    other = rng.standard_normal((1, 12, 45))
    plain, fitted = (separate(other, 5, multiplier, moments) for moments in (None, h))
    lost = [np.sum((x[1000:] @ (other - f.last @ f.features)[0].T) ** 2) for f in (plain, fitted)]
    assert lost[1] < 0.8 * lost[0]


def test_refit_is_least_squares_on_the_inputs_that_it_gets() -> None:
    rng = np.random.default_rng(0)
    t = correlated(rng, 3000, 10) + 1.0
    x = t + 0.3 * rng.standard_normal(t.shape) + 0.5
    rows, features = rng.standard_normal((1, 6, 10)), rng.standard_normal((1, 4, 10))
    last = rng.standard_normal((1, 6, 4))
    gram = Gram.zeros(1, 10, paired=True)
    gram.add(x[None], t[None])
    new, shift = solution(rows, features, last, gram, centred=True)
    design = np.column_stack([x @ features[0].T, np.ones(len(x))])
    expected = np.linalg.lstsq(design, t @ rows[0].T, rcond=None)[0]
    best, got = (
        np.sum((t @ rows[0].T - design @ solved) ** 2)
        for solved in (expected, np.vstack([new[0].T, shift[None]]))
    )
    assert got < best * 1.02
    assert got < 0.5 * np.sum((t @ rows[0].T - x @ features[0].T @ last[0].T) ** 2)


@quick
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.2, 1.0),
)
def test_the_budget_is_kept_and_spent_nearly_as_well_as_can_be(
    drawn: list[list[tuple[int, int]]], ratio: float
) -> None:
    many = [
        [Offer(10.0, 0.0, None), *(Offer(float(c), float(e), i) for i, (c, e) in enumerate(one))]
        for one in drawn
    ]
    budget = ratio * 10 * len(many)
    chosen = distribute(many, budget)
    combined = [(sum(o.cost for o in p), sum(o.error for o in p)) for p in itertools.product(*many)]
    fitting = [e for c, e in combined if c <= budget]
    if chosen is None:
        assert not fitting
        return
    assert sum(o.cost for o in chosen) <= budget + 1e-9
    # The greedy step that crosses the budget costs at most its own error above the optimum.
    worst = max(o.error for one in many for o in one)
    assert sum(o.error for o in chosen) <= min(fitting) + worst + 1e-9


def test_the_hull_has_only_what_some_price_would_choose() -> None:
    offers = [
        Offer(10.0, 0.0, 0),
        Offer(8.0, 3.0, 1),
        Offer(6.0, 2.0, 2),
        Offer(5.0, 9.0, 3),
        Offer(2.0, 10.0, 4),
    ]
    assert [o.item for o in hull(offers)] == [0, 2, 4]
