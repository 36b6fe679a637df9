"""Solvers on Gram matrices, against float64 written out and against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar import solve
from attar.errors import InputError

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, rows: int = 5, columns: int = 12, count: int = 60) -> tuple[Array, Array, Array]:
    """A weight, inputs whose columns are correlated, and their Gram matrix."""
    rng = np.random.default_rng(seed)
    few = max(1, columns // 4)
    x = rng.standard_normal((count, few)) @ rng.standard_normal((few, columns))
    x += 0.3 * rng.standard_normal(x.shape)
    return rng.standard_normal((rows, columns)), x, x.T @ x / count


def grid(weight: Array, bits: int = 4, blocks: int = 1) -> solve.Grid:
    top = 2 ** (bits - 1) - 1
    reach = np.abs(weight).reshape(*weight.shape[:-1], blocks, -1).max(axis=-1)
    return solve.Grid(reach / top, 0, -top, top)


@given(SEEDS, st.booleans(), st.sampled_from([1, 3]))
def test_an_identity_hessian_gives_rounding_to_nearest(seed: int, by_size: bool, blocks: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((4, 12))
    space = grid(weight, 4, blocks)
    h = 3.7 * np.eye(12)
    codes = solve.hessian_rounding(weight, h, space, by_size=by_size)
    np.testing.assert_array_equal(codes, space.codes(weight))
    np.testing.assert_array_equal(solve.descend(weight, h, codes, space), codes)


def test_nearest_codes_are_half_to_even_and_saturate() -> None:
    space = solve.Grid(np.array([[0.5]]), 1, 0, 7)
    codes = space.codes(np.array([[0.25, 0.75, -9.0, 9.0, 0.5]]))
    assert codes.tolist() == [[1, 3, 0, 7, 2]]
    assert space.values(codes).tolist() == [[0.0, 1.0, -0.5, 3.0, 0.5]]


@given(SEEDS)
def test_the_factor_is_upper_triangular_and_its_square_is_the_matrix(seed: int) -> None:
    h = solve.damped(problem(seed)[2])
    r = solve.upper_factor(h)
    np.testing.assert_allclose(r @ r.T, h, rtol=1e-9, atol=1e-9 * h.max())
    assert np.array_equal(r, np.triu(r))
    assert (np.diagonal(r) > 0).all()


def gptq_as_published(weight: Array, h: Array, space: solve.Grid) -> Array:
    """Frantar et al. 2022, algorithm 1 without blocks: updates of the rest by the Cholesky factor of H^-1."""
    upper = np.linalg.cholesky(np.linalg.inv(h)).T  # H^-1 = U^T U
    w = weight.copy()
    q = np.zeros_like(w)
    for i in range(w.shape[1]):
        s = space.scale[:, 0]
        q[:, i] = np.clip(np.rint(w[:, i] / s), space.low, space.high)
        error = (w[:, i] - q[:, i] * s) / upper[i, i]
        w[:, i:] -= np.outer(error, upper[i, i:])
    return q


@pytest.mark.parametrize("columns", [7, 64, 150])
def test_hessian_rounding_is_gptq(columns: int) -> None:
    weight, _, gram = problem(columns, rows=9, columns=columns, count=4 * columns)
    h, space = solve.damped(gram), grid(weight)
    expected = gptq_as_published(weight, h, space)
    found = solve.hessian_rounding(weight, h, space)
    # A tie in the last bit may fall the other way and changes the rest of its row.
    assert (found == expected).all(axis=1).mean() > 0.8
    np.testing.assert_allclose(
        solve.cost(weight - space.values(found), h).sum(),
        solve.cost(weight - space.scale * expected, h).sum(),
        rtol=1e-2,
    )


@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_descent_never_costs_more_and_rests_where_no_code_can_be_bettered(seed: int, blocks: int) -> None:
    weight, _, gram = problem(seed, rows=6, columns=16)
    h, space = solve.damped(gram), grid(weight, 3, blocks)
    rounded = solve.hessian_rounding(weight, h, space)
    better = solve.descend(weight, h, rounded, space, sweeps=1)
    before, after = (solve.cost(weight - space.values(c), h) for c in (rounded, better))
    assert (after <= before * (1 + 1e-9)).all()
    assert better.min() >= space.low
    assert better.max() <= space.high
    rested = solve.descend(weight, h, rounded, space, sweeps=200)
    best = solve.cost(weight - space.values(rested), h)
    for column, step in itertools.product(range(16), (-1, 1)):
        moved = rested.copy()
        moved[:, column] = np.clip(moved[:, column] + step, space.low, space.high)
        assert (solve.cost(weight - space.values(moved), h) >= best * (1 - 1e-9)).all()


def test_hessian_rounding_costs_a_fraction_of_rounding_to_nearest() -> None:
    """Greedy choices may lose in a case; over cases they win by far."""
    ratios = []
    for seed in range(20):
        weight, _, gram = problem(seed, rows=8, columns=48, count=200)
        h, space = solve.damped(gram), grid(weight)
        nearest, rounded = space.codes(weight), solve.hessian_rounding(weight, h, space)
        ratios.append(
            solve.cost(weight - space.values(rounded), h).sum()
            / solve.cost(weight - space.values(nearest), h).sum()
        )
    assert np.median(ratios) < 0.35


def test_rounding_comes_near_the_best_of_all_roundings() -> None:
    """Every assignment of 3 codes to 6 weights, tried out."""
    ratios = []
    for seed in range(12):
        weight, _, gram = problem(seed, rows=1, columns=6, count=30)
        h, space = solve.damped(gram), solve.Grid(np.full((1, 1), 0.9), 0, -1, 1)
        every = np.array(list(itertools.product((-1, 0, 1), repeat=6)))
        best = solve.cost(weight - space.values(every[None]), h).min()
        codes = solve.descend(weight, h, solve.hessian_rounding(weight, h, space), space, sweeps=9)
        nearest = solve.cost(weight - space.values(space.codes(weight)), h)[0]
        found = solve.cost(weight - space.values(codes), h)[0]
        assert found >= best * (1 - 1e-12)
        ratios.append((found / best, nearest / best))
    mine, theirs = np.median(ratios, axis=0)
    assert mine < 1.2
    assert theirs > 2


@given(SEEDS)
def test_groups_are_solved_as_if_each_were_alone(seed: int) -> None:
    parts = [problem(seed + i, rows=3, columns=9) for i in range(4)]
    weight = np.stack([p[0] for p in parts])
    h = solve.damped(np.stack([p[2] for p in parts]))
    space = grid(weight, 3)
    together = solve.descend(weight, h, solve.hessian_rounding(weight, h, space), space)
    for i, (w, _, gram) in enumerate(parts):
        own = grid(w, 3)
        alone = solve.descend(w, solve.damped(gram), solve.hessian_rounding(w, solve.damped(gram), own), own)
        np.testing.assert_array_equal(together[i], alone)


def test_large_weights_in_single_precision_round_as_well() -> None:
    weight, _, gram = problem(3, rows=1100, columns=512, count=2000)
    h, space = solve.damped(gram, 0.05), grid(weight)
    codes = solve.hessian_rounding(weight, h, space)
    small = solve.hessian_rounding(weight[:100], h, solve.Grid(space.scale[:100], 0, -7, 7))
    one = solve.cost(weight[:100] - space.scale[:100] * codes[:100], h).sum()
    other = solve.cost(weight[:100] - space.scale[:100] * small, h).sum()
    assert one == pytest.approx(other, rel=0.02)


@given(SEEDS)
def test_the_order_by_size_keeps_scales_with_their_columns(seed: int) -> None:
    weight, _, gram = problem(seed, rows=4, columns=12)
    weight[:, 6:] *= 20
    h, space = solve.damped(gram), grid(weight, 4, 2)
    codes = solve.hessian_rounding(weight, h, space, by_size=True)
    # The same as rounding the permuted problem with one scale for every column.
    order = np.argsort(-np.diagonal(h), kind="stable")
    each = solve.Grid(np.repeat(space.scale, 6, axis=1)[:, order], 0, -7, 7)
    expected = solve.hessian_rounding(weight[:, order], h[np.ix_(order, order)], each)
    np.testing.assert_array_equal(codes[:, order], expected)


@given(SEEDS)
def test_the_best_scale_is_a_minimum(seed: int) -> None:
    weight, _, gram = problem(seed)
    h, space = solve.damped(gram), grid(weight)
    codes = space.codes(weight)
    scale = solve.best_scale(weight, h, codes, space)
    at = solve.cost(weight - scale * codes, h)
    for factor in (0.99, 1.01):
        assert (solve.cost(weight - factor * scale * codes, h) >= at).all()


@given(SEEDS)
def test_refit_is_least_squares(seed: int) -> None:
    weight, x, gram = problem(seed, rows=4, columns=10, count=80)
    keep = np.array([0, 2, 3, 7, 9])
    expected = np.linalg.lstsq(x[:, keep], x @ weight.T, rcond=None)[0].T
    found = solve.refit(weight, gram, keep, damping=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    mask = np.zeros(10, np.bool_)
    mask[keep] = True
    np.testing.assert_array_equal(solve.refit(weight, gram, mask, damping=0), found)


@given(SEEDS)
def test_transfer_is_least_squares_drawn_to_the_old_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, t, _ = problem(seed, rows=3, columns=6, count=50)
    x = t + 0.3 * rng.standard_normal(t.shape)
    gram, cross = x.T @ x / 50, t.T @ x / 50
    h = solve.damped(gram, 0.1)
    extra = h - gram  # a multiple of the identity: 50 times it is the penalty of the whole data
    padded = np.concatenate([x, np.sqrt(50 * extra)])
    target = np.concatenate([t @ weight.T, np.sqrt(50 * extra) @ weight.T])
    expected = np.linalg.lstsq(padded, target, rcond=None)[0].T
    np.testing.assert_allclose(solve.transfer(weight, h, gram, cross), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(solve.transfer(weight, h, gram, gram), weight, rtol=1e-12)


def test_sparse_weights_have_the_ratio_and_cost_less_than_zeroing() -> None:
    weight, _, gram = problem(5, rows=20, columns=128, count=600)
    h = solve.damped(gram)
    found = solve.sparsify(weight, h, ratio=0.5)
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.01)
    small = np.abs(weight) < np.median(np.abs(weight))
    assert solve.cost(weight - found, h).sum() < 0.5 * solve.cost(weight * small, h).sum()


def test_a_pattern_holds_in_every_group_and_rounding_goes_with_it() -> None:
    weight, _, gram = problem(6, rows=6, columns=72, count=400)
    h, space = solve.damped(gram), grid(weight, 5)
    found = solve.sparsify(weight, h, pattern=(2, 4), grid=space)
    zeros = (found == 0).reshape(6, 18, 4).sum(axis=2)
    assert (zeros >= 2).all()
    np.testing.assert_allclose(found, space.values(space.codes(found)), atol=1e-12)


def test_with_an_identity_hessian_sparsifying_zeroes_the_smallest() -> None:
    weight = np.random.default_rng(7).standard_normal((3, 16))
    found = solve.sparsify(weight, np.eye(16), pattern=(2, 4))
    order = np.argsort(np.abs(weight).reshape(3, 4, 4), axis=2)
    expected = weight.reshape(3, 4, 4).copy()
    np.put_along_axis(expected, order[:, :, :2], 0.0, axis=2)
    np.testing.assert_array_equal(found.reshape(3, 4, 4), expected)


def test_inputs_that_never_speak_and_too_little_data_do_no_harm() -> None:
    weight, x, _ = problem(8, rows=3, columns=10, count=4)
    x[:, 3] = 0
    gram = x.T @ x
    for damping in (0.0, 0.01):
        h = solve.damped(gram, damping)
        assert np.linalg.eigvalsh(h).min() > 0
        codes = solve.hessian_rounding(weight, h, grid(weight))
        assert np.isfinite(solve.cost(weight - grid(weight).values(codes), h)).all()
    np.testing.assert_array_equal(
        solve.hessian_rounding(weight, solve.damped(np.zeros((10, 10))), grid(weight)),
        grid(weight).codes(weight),
    )


def test_bad_arguments_are_named() -> None:
    weight, _, gram = problem(9)
    with pytest.raises(InputError, match="not positive definite"):
        solve.upper_factor(-gram)
    with pytest.raises(InputError, match="NaN or infinite"):
        solve.damped(gram * np.nan)
    with pytest.raises(InputError, match="negative"):
        solve.damped(gram, -1)
    with pytest.raises(InputError, match="do not fit"):
        solve.refit(weight, gram, np.array([], np.int64))
    with pytest.raises(InputError, match="do not fit"):
        solve.refit(weight, gram, np.array([12]))
    with pytest.raises(InputError, match="do not fit"):
        solve.refit(weight, gram, np.ones(5, np.bool_))
    with pytest.raises(InputError, match="pattern"):
        solve.sparsify(weight, gram, pattern=(2, 5))
    with pytest.raises(InputError, match="ratio"):
        solve.sparsify(weight, gram, ratio=1.0)
    with pytest.raises(InputError, match="5 scales"):
        solve.Grid(np.ones((1, 5)), 0, -7, 7).codes(weight)
