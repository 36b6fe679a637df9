"""Errors say what, where and the way out; they survive pickling, and form one tree."""

from __future__ import annotations

import inspect
import pickle

import pytest

from attar import errors
from attar.errors import AttarError, BudgetMissed, ConversionError, InputError, Refused, did_you_mean


def test_the_tree_has_one_root_and_every_branch_is_documented() -> None:
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    assert {c.__name__ for c in classes} == {
        "AttarError",
        "BudgetMissed",
        "ConversionError",
        "InputError",
        "PluginError",
        "RecipeError",
        "Refused",
        "VerifyError",
    }
    assert all(issubclass(c, AttarError) and c.__doc__ for c in classes)


def test_the_hint_stands_under_the_message() -> None:
    assert str(InputError("no such file: x")) == "no such file: x"
    error = InputError("no such file: x", hint="look elsewhere")
    assert str(error) == "no such file: x\n  hint: look elsewhere"
    assert (error.message, error.hint) == ("no such file: x", "look elsewhere")


def test_a_refusal_names_the_nodes() -> None:
    error = Refused("nothing to prune", nodes=[("conv1", "its output is an output"), ("conv2", "shared")])
    assert str(error) == "nothing to prune\n  conv1: its output is an output\n  conv2: shared"
    assert error.nodes == (("conv1", "its output is an output"), ("conv2", "shared"))
    assert Refused("x").nodes == ()


def test_a_conversion_error_lists_all_operators_and_some_nodes() -> None:
    error = ConversionError("cannot write torch", missing={"Loop": ["a"], "If": ["b", "c", "d", "e", "f"]})
    assert str(error) == "cannot write torch\n  If: b, c, d and 2 more\n  Loop: a"
    assert error.missing == {"Loop": ("a",), "If": ("b", "c", "d", "e", "f")}
    assert ConversionError("x").missing == {}


def test_a_missed_budget_carries_the_best() -> None:
    assert BudgetMissed("too large", best=[1]).best == [1]
    assert BudgetMissed("too large").best is None


@pytest.mark.parametrize(
    "error",
    [
        InputError("a", hint="b"),
        Refused("a", nodes=[("n", "why")], hint="b"),
        ConversionError("a", missing={"Op": ["n"]}, hint="b"),
        BudgetMissed("a", best=3, hint="b"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_travel_between_processes(error: AttarError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_did_you_mean() -> None:
    assert (
        did_you_mean("prune.chanels", ["prune.channels", "fuse.inference"])
        == "did you mean 'prune.channels'?"
    )
    assert did_you_mean("aab", ["aaa", "aac"]) == "did you mean 'aac' or 'aaa'?"
    assert did_you_mean("xyz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("xyz", []) == "known: none"
