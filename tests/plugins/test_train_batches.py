"""Which samples a step sees: order, augmentation, loaders; a function of the seed and the step alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_data import context, images, mlp, network  # noqa: E402

from attar import graph  # noqa: E402
from attar.errors import InputError  # noqa: E402
from attar.run import run_pass  # noqa: E402
from attar.specs import TensorSpec  # noqa: E402
from attar.training import as_training  # noqa: E402
from attar_train import FineTune, Options  # noqa: E402
from attar_train.augment import augmented, mixed  # noqa: E402
from attar_train.batches import Batches  # noqa: E402

SPECS = (TensorSpec("x", np.dtype(np.float32), ("N", 1)),)
X = np.arange(50, dtype=np.float32)[:, None]


def order(data: Any, epoch: int, first: int = 0, seed: int = 0, **place: int) -> list[list[int]]:
    batches = Batches(as_training(data, SPECS), Options(batch_size=8), seed, **place)
    return [[int(v) for v in b.inputs["x"][:, 0]] for b in batches.epoch(epoch, first)]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert order(X, 3) == order(X, 3)
    assert order(X, 3) != order(X, 4)
    assert order(X, 3) != order(X, 3, seed=1)
    assert order(X, 3, first=4) == order(X, 3)[4:]
    seen = sorted(i for e in range(40) for b in order(X, e) for i in b)
    assert len(order(X, 0)) == 6
    assert set(seen) == set(range(50)), "what is left over is another rest each time"
    for epoch in range(5):
        assert len({i for b in order(X, epoch) for i in b}) == 48, "none twice in an epoch"
    parts = [order(X, 2, rank=rank, world=2) for rank in (0, 1)]
    whole = Batches(as_training(X, SPECS), Options(batch_size=16), 0)
    joined = [[int(v) for v in b.inputs["x"][:, 0]] for b in whole.epoch(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == joined


def test_images_are_mirrored_and_shifted() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 6, 5)).astype(np.float32)
    made = augmented(x, np.random.default_rng(1), flip=True)
    mirrored = (made == x[..., ::-1]).all((1, 2, 3))
    same = (made == x).all((1, 2, 3))
    assert (mirrored | same).all()
    assert 16 < mirrored.sum() < 48
    moved = augmented(x, np.random.default_rng(1), crop=2)
    for before, after in zip(x, moved, strict=True):
        padded = np.pad(before, [(0, 0), (2, 2), (2, 2)])
        found = [
            (i, j) for i in range(5) for j in range(5) if (padded[:, i : i + 6, j : j + 5] == after).all()
        ]
        assert len(found) == 1
    last = augmented(x.transpose(0, 2, 3, 1), np.random.default_rng(1), flip=True, crop=2)
    first = augmented(x, np.random.default_rng(1), flip=True, crop=2)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    rows = rng.standard_normal((20, 9, 4)).astype(np.float32)
    shifted = augmented(rows, np.random.default_rng(2), crop=3, flip=True)
    for before, after in zip(rows, shifted, strict=True):
        padded = np.pad(before, [(3, 3), (0, 0)])
        assert any((padded[i : i + 9] == after).all() for i in range(7))
    noisy = augmented(x, np.random.default_rng(3), noise=0.5)
    assert (noisy - x).std() == pytest.approx(0.5 * x.std(), rel=0.1)
    assert noisy.dtype == x.dtype
    np.testing.assert_array_equal(augmented(X, np.random.default_rng(0), flip=True, crop=2), X)


@pytest.mark.parametrize("last", [False, True])
def test_batches_are_mixed_with_themselves(last: bool) -> None:
    x = torch.randn(16, 3, 12, 10)
    x = x.permute(0, 2, 3, 1) if last else x
    ids = torch.arange(16)
    made, perm, share = mixed({"x": x, "ids": ids}, np.random.default_rng(0), 0.4, 0.0)
    torch.testing.assert_close(made["x"], share * x + (1 - share) * x[perm])
    assert made["ids"] is ids
    made, perm, share = mixed({"x": x}, np.random.default_rng(0), 0.0, 1.0)
    moved = made["x"] != x
    inside = (made["x"] == x[perm]) & (made["x"] != x)
    assert (moved == inside).all(), "a pixel is of one image or of the other"
    plane = moved.any(0).any(-1) if last else moved.any(0).any(0)
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    assert plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "a rectangle"
    assert share == pytest.approx(1 - float(plane.float().mean()))
    shares = [mixed({"x": x}, np.random.default_rng(i), 0.3, 0.0)[2] for i in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(0.25 / (2 * 0.3 + 1), rel=0.2)  # of Beta(a, a)


@pytest.mark.parametrize("turned", [False, True])
def test_several_views_of_a_sample_are_cut_at_one_place(turned: bool) -> None:
    x, y = torch.randn(8, 3, 12, 12), torch.randn(8, 3, 6, 6)
    given = {"x": x, "y": y.permute(0, 2, 3, 1) if turned else y}
    for seed in range(20):
        made, _, share = mixed(given, np.random.default_rng(seed), 0.0, 1.0)
        small = made["y"].permute(0, 3, 1, 2) if turned else made["y"]
        wide = (made["x"] != x).any(0).any(0).numpy()
        cut = (small != y).any(0).any(0).numpy()
        centres = [np.argwhere(p).mean(0) / len(p) for p in (wide, cut) if p.any()]
        # Half a pixel of the smaller one, and what the edge of one cuts off and that of the other does not.
        assert len(centres) < 2 or np.abs(centres[0] - centres[1]).max() <= 1 / 6
        assert share == pytest.approx(1 - (wide.mean() + cut.mean()) / 2)


def test_what_cannot_be_mixed_is_refused_and_labels_stay_whole() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="cutmix cuts images"):
        mixed({"x": torch.randn(8, 6)}, rng, 0.0, 1.0)
    with pytest.raises(InputError, match="mixup mixes floats"):
        mixed({"tokens": torch.arange(24).reshape(8, 3)}, rng, 0.4, 0.0)
    model = mlp()
    data = np.zeros((64, 6), np.float32), np.zeros(64, np.int64)
    with pytest.raises(InputError, match="cutmix"):
        run_pass(FineTune(epochs=1, cutmix=1.0), model, context(model, data))


class Drawing:
    """A loader of one's own that augments with every generator there is."""

    def __init__(self, count: int = 6) -> None:
        self.count = count

    def __iter__(self) -> Any:
        x, y = images(192)
        turn = torch.randperm(self.count)
        for i in turn.tolist():
            part = x[32 * i : 32 * (i + 1)]
            noise = float(torch.randn(())) + np.random.standard_normal() + random.random()
            yield part + np.float32(0.1 * noise), y[32 * i : 32 * (i + 1)]


def test_a_loader_that_draws_at_random_gives_the_same_again(tmp_path: Any, monkeypatch: Any) -> None:
    """Also when it was stopped in the middle of an epoch and went on."""
    model = network()
    step = FineTune(epochs=2, lr=0.01, optimizer="sgd")

    def run(step: FineTune) -> tuple[str, str]:
        random.seed()
        result, record = run_pass(step, model, context(model, Drawing()))
        return graph.fingerprint(result), record.changes[0]

    first, said = run(step)
    assert said.startswith("trained 12 steps")
    assert run(step)[0] == first
    plain, calls = torch.optim.SGD.step, 0

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    kept = FineTune(epochs=2, lr=0.01, optimizer="sgd", checkpoint=str(tmp_path), checkpoint_seconds=0.0)
    monkeypatch.setattr(torch.optim.SGD, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        run(kept)
    monkeypatch.setattr(torch.optim.SGD, "step", plain)
    model_, record = run_pass(kept, model, context(model, Drawing()))
    assert "of which 9 before" in record.changes[0]
    whole, _ = run_pass(step, model, context(model, Drawing()))
    for name, value in whole.graph.initializers.items():
        np.testing.assert_array_equal(
            graph.const_array(value), graph.const_array(model_.graph.initializers[name]), err_msg=name
        )
