"""A pass is a transaction: the caller's model is as it was, whatever the pass does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import mlp, registry_with

from attar import graph
from attar.context import Context
from attar.errors import InputError, RecipeError, Refused, VerifyError
from attar.hooks import hookimpl
from attar.passes import Pass
from attar.registry import Registry
from attar.report import Step
from attar.run import run_pass, run_recipe, with_required
from attar.runtime import OnnxRuntime

FEEDS = {"x": np.ones((1, 16), np.float32)}


def halve(model: ir.Model) -> None:
    """Change every weight, and add and rename things on the way."""
    for value in list(model.graph.initializers.values()):
        array = graph.const_array(value)
        assert array is not None
        graph.replace_weight(value, array / 2)
    graph.add_initializer(model.graph, "litter", np.ones(3, np.float32))
    model.metadata_props["litter"] = "here"


class Halve(Pass, name="test.halve"):
    """Halve all weights."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        halve(model)
        ctx.note("halved")


class Fails(Pass, name="test.fails"):
    """Does half its work, then fails as it is told."""

    how: str = "value"
    raises: ClassVar[dict[str, Callable[[], BaseException]]] = {
        "refused": lambda: Refused("not today", nodes=[("gemm_1", "too small")]),
        "value": lambda: ValueError("broken inside"),
        "input": lambda: InputError("bad data"),
        "stop": KeyboardInterrupt,
    }

    def apply(self, model: ir.Model, ctx: Context) -> None:
        halve(model)
        raise self.raises[self.how]()


class Breaks(Pass, name="test.breaks"):
    """Renames the output."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        model.graph.outputs[0].name = "z"


class Loses(Pass, name="test.loses"):
    """Forgets an initializer that is in use."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        model.graph.initializers.clear()


class Needs(Pass, name="test.needs"):
    """Wants test.halve before it."""

    requires = ("test.halve",)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        ctx.note("after")


class NeedsMore(Pass, name="test.needs_more"):
    """Wants test.needs before it."""

    requires = ("test.needs",)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        ctx.note("last")


class Circular(Pass, name="test.circular"):
    """Wants itself."""

    requires = ("test.circular",)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        pass


class Lost(Pass, name="test.lost"):
    """Wants what nobody brings."""

    requires = ("test.halv",)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        pass


def registry() -> Registry:
    return registry_with(Halve, Fails, Breaks, Loses, Needs, NeedsMore, Circular, Lost)


def context(found: Registry | None = None) -> Context:
    found = found or registry()
    return Context(found, found.get_target("cpu"), OnnxRuntime())


@pytest.fixture
def model() -> ir.Model:
    return mlp()


def weights(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    return {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items() if v.const_value}


def test_success_gives_a_new_model_and_leaves_the_old(model: ir.Model) -> None:
    before, old = graph.to_bytes(model), weights(model)
    after, record = run_pass(Halve(), model, context(), FEEDS)
    assert graph.to_bytes(model) == before
    for name, array in weights(after).items():
        np.testing.assert_array_equal(array, old[name] / 2)
    assert "litter" not in after.graph.initializers  # tidied
    assert (record.name, record.options, record.changes) == ("test.halve", {}, ["halved"])
    assert record.bytes_before == len(before)
    assert record.nodes_before == record.nodes_after == 3
    assert record.seconds > 0
    assert graph.provenance(after)["passes"] == "test.halve"
    again, _ = run_pass(Halve(), after, context(), FEEDS)
    assert graph.provenance(again)["passes"] == "test.halve test.halve"


@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        (Fails(how="refused"), Refused, r"not today\n  gemm_1: too small"),
        (Fails(how="value"), VerifyError, r"pass 'test.fails' failed: ValueError: broken inside[\s\S]*bug"),
        (Fails(how="input"), InputError, "bad data"),
        (Fails(how="stop"), KeyboardInterrupt, ""),
        (Breaks(), VerifyError, "pass 'test.breaks' broke the model: the outputs changed from y to z"),
        (Loses(), VerifyError, "pass 'test.loses'"),
    ],
)
def test_failure_leaves_the_model_and_names_the_pass(
    model: ir.Model, step: Pass, error: type[BaseException], told: str
) -> None:
    before = graph.to_bytes(model)
    with pytest.raises(error, match=told):
        run_pass(step, model, context(), FEEDS)
    assert graph.to_bytes(model) == before
    assert OnnxRuntime().open(model).run(FEEDS)[0].shape == (1, 4)


def test_a_refusal_is_recorded_and_the_recipe_goes_on(model: ir.Model) -> None:
    found, steps, planned_from = run_recipe([Fails(how="refused"), Halve()], model, context(), FEEDS)
    assert [(s.name, s.refused.split("\n")[0], s.implied) for s in steps] == [
        ("test.fails", "not today", False),
        ("test.halve", "", False),
    ]
    assert steps[0].bytes_after == steps[0].bytes_before
    assert steps[0].nodes_after == steps[0].nodes_before
    assert planned_from is model
    assert graph.provenance(found)["passes"] == "test.halve"


def test_any_other_failure_ends_the_recipe(model: ir.Model) -> None:
    with pytest.raises(VerifyError, match=r"test\.breaks"):
        run_recipe([Halve(), Breaks(), Halve()], model, context(), FEEDS)


# -- required passes -----------------------------------------------------------------------------------------


def names(recipe: list[Pass], model: ir.Model) -> list[tuple[str, bool]]:
    return [
        (p.name.removeprefix("test."), implied) for p, implied in with_required(recipe, model, registry())
    ]


def test_required_passes_come_first_and_once(model: ir.Model) -> None:
    assert names([NeedsMore()], model) == [("halve", True), ("needs", True), ("needs_more", False)]
    assert names([Halve(), Needs()], model) == [("halve", False), ("needs", False)]
    assert names([Needs(), NeedsMore(), Needs()], model) == [
        ("halve", True),
        ("needs", False),
        ("needs_more", False),
        ("needs", False),
    ]
    assert names([Circular()], model)[-1] == ("circular", False)


def test_a_model_that_has_been_through_a_pass_needs_it_no_more(model: ir.Model) -> None:
    halved, _ = run_pass(Halve(), model, context())
    assert names([Needs()], halved) == [("needs", False)]
    saved = ir.from_proto(graph.to_proto(halved))
    assert names([Needs()], saved) == [("needs", False)]


def test_implied_steps_are_marked_in_the_report(model: ir.Model) -> None:
    _, steps, _ = run_recipe([Needs()], model, context())
    assert [(s.name, s.implied) for s in steps] == [("test.halve", True), ("test.needs", False)]


def test_a_required_pass_that_nobody_brings(model: ir.Model) -> None:
    with pytest.raises(RecipeError, match=r"unknown pass 'test.halv'[\s\S]*did you mean 'test.halve'"):
        run_recipe([Lost()], model, context())


# -- hooks ---------------------------------------------------------------------------------------------------


class Watcher:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    @hookimpl
    def attar_before_pass(self, step: Pass, model: ir.Model) -> None:
        self.seen.append(("before", step.name, 0))

    @hookimpl
    def attar_after_pass(self, step: Pass, record: Step, ctx: Context) -> None:
        assert ctx.step is record
        self.seen.append(("after", step.name, record.bytes_after))


class Clumsy:
    """A plugin whose event hooks fail."""

    @hookimpl
    def attar_before_pass(self, step: Pass) -> None:
        raise RuntimeError("no disk")

    @hookimpl
    def attar_after_pass(self, step: Pass) -> None:
        raise OSError("no network")


def test_hooks_are_called_in_order(model: ir.Model) -> None:
    watcher = Watcher()
    found = registry()
    found.register(watcher, name="watcher")
    run_recipe([Needs(), Fails(how="refused")], model, context(found), FEEDS)
    assert [(when, name) for when, name, _ in watcher.seen] == [
        ("before", "test.halve"),
        ("after", "test.halve"),
        ("before", "test.needs"),
        ("after", "test.needs"),
        ("before", "test.fails"),
    ]
    assert watcher.seen[1][2] > 0


def test_a_hook_that_fails_is_noted_and_stops_nothing(model: ir.Model) -> None:
    watcher, found = Watcher(), registry()
    found.register(Clumsy(), name="clumsy")
    found.register(watcher, name="watcher")
    _, record = run_pass(Halve(), model, context(found), FEEDS)
    assert record.changes == [
        "plugin clumsy failed in attar_before_pass: RuntimeError: no disk",
        "halved",
        "plugin clumsy failed in attar_after_pass: OSError: no network",
    ]
    assert [when for when, _, _ in watcher.seen] == ["before", "after"]


def test_an_interrupt_in_a_hook_is_an_interrupt(model: ir.Model) -> None:
    class Stops:
        @hookimpl
        def attar_before_pass(self, step: Pass) -> None:
            raise KeyboardInterrupt

    found = registry()
    found.register(Stops(), name="stops")
    before = graph.to_bytes(model)
    with pytest.raises(KeyboardInterrupt):
        run_pass(Halve(), model, context(found), FEEDS)
    assert graph.to_bytes(model) == before
