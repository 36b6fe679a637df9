"""Every hook is heard, described in docs/plugins.md, and cannot be misspelt."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from attar import hookimpl
from attar.adapters import Adapter
from attar.context import Context
from attar.errors import PluginError
from attar.graph import replace_weight
from attar.hooks import Hooks
from attar.ops import OpRule
from attar.passes import Pass
from attar.registry import Registry
from attar.report import Step
from attar.run import run_pass
from attar.runtime import OnnxRuntime, Runtime
from attar.targets import Target
from attar.testing import ZOO
from attar.training import TrainingEvent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
HOOKS = {name: spec for name, spec in vars(Hooks).items() if name.startswith("attar_")}


class Act(Pass, name="heard.act"):
    """Doubles weights."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            replace_weight(value, value.const_value.numpy() * np.float32(2))


class Reader(Adapter):
    name = "heard"


class Engine(Runtime):
    name = "heard"


def function(*args: Any) -> None:
    """Stands for any function."""


class Plugin:
    """Implements every hook."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.reader, self.engine, self.target = Reader(), Engine(), Target("heard", "a target")
        self.rule = OpRule("HeardOp")

    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return [Act]

    @hookimpl
    def attar_adapters(self) -> list[Adapter]:
        return [self.reader]

    @hookimpl
    def attar_lowerings(self, framework: str) -> dict[str, Any]:
        return {"HeardOp": function} if framework == "heard" else {}

    @hookimpl
    def attar_liftings(self, framework: str) -> dict[str, Any]:
        return {"heard_op": function} if framework == "heard" else {}

    @hookimpl
    def attar_targets(self) -> list[Target]:
        return [self.target]

    @hookimpl
    def attar_runtimes(self) -> list[Runtime]:
        return [self.engine]

    @hookimpl
    def attar_ops(self) -> list[Any]:
        return [self.rule]

    @hookimpl
    def attar_observers(self) -> dict[str, Any]:
        return {"heard": function}

    @hookimpl
    def attar_importances(self) -> dict[str, Any]:
        return {"heard": function}

    @hookimpl
    def attar_metrics(self) -> dict[str, Any]:
        return {"heard": function}

    @hookimpl
    def attar_before_pass(self, step: Pass, model: ir.Model, ctx: Context) -> None:
        self.heard.append(("before", step, largest(model), ctx))

    @hookimpl
    def attar_after_pass(self, step: Pass, model: ir.Model, ctx: Context, record: Step) -> None:
        self.heard.append(("after", step, largest(model), record))

    @hookimpl
    def attar_training(self, event: TrainingEvent) -> None:
        self.heard.append(("training", event))

    @hookimpl
    def attar_commands(self, cli: click.Group) -> None:
        @cli.command("heard")
        def heard() -> None:
            click.echo("heard you")


def largest(model: ir.Model) -> float:
    return max(float(np.abs(v.const_value.numpy()).max()) for v in model.graph.initializers.values())  # type: ignore[union-attr]


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def registry(plugin: Plugin) -> Registry:
    registry = Registry()
    registry.register(plugin, name="heard", distribution="attar-heard")
    return registry


def test_the_plugin_of_this_file_implements_every_hook() -> None:
    assert set(HOOKS) == {name for name in vars(Plugin) if name.startswith("attar_")}


def test_what_a_plugin_brings_is_found_by_name(registry: Registry, plugin: Plugin) -> None:
    empty = Registry()
    for table, key, item in (
        ("passes", "heard.act", Act),
        ("adapters", "heard", plugin.reader),
        ("targets", "heard", plugin.target),
        ("runtimes", "heard", plugin.engine),
        ("ops", "HeardOp", plugin.rule),
        ("observers", "heard", function),
        ("importances", "heard", function),
        ("metrics", "heard", function),
    ):
        assert getattr(registry, table)[key] is item
        assert key not in getattr(empty, table)
    assert registry.broken == {}


@pytest.mark.parametrize(("hook", "key"), [("attar_lowerings", "HeardOp"), ("attar_liftings", "heard_op")])
def test_operator_tables_are_asked_for_one_framework(registry: Registry, hook: str, key: str) -> None:
    assert registry.op_table(hook, "heard") == {key: function}
    assert registry.op_table(hook, "other") == {}


def test_events_are_heard_around_a_pass(registry: Registry, plugin: Plugin) -> None:
    model = ZOO["mlp"].build()
    ctx = Context(registry, registry.get_target("cpu"), OnnxRuntime())
    result, record = run_pass(Act(), model, ctx)
    (before, after) = plugin.heard
    assert before == ("before", Act(), largest(model), ctx)
    assert after == ("after", Act(), largest(result), record)
    assert after[2] == 2 * before[2]
    assert record.name == "heard.act"


def test_events_of_a_training_are_heard(registry: Registry, plugin: Plugin) -> None:
    event = TrainingEvent("step", "train.finetune", 3, 10, 1, {"loss": 0.5})
    assert registry.tell("attar_training", event=event) == []
    assert plugin.heard == [("training", event)]


def test_commands_are_added_to_the_command_line(registry: Registry) -> None:
    @click.group()
    def cli() -> None:
        """A command line."""

    registry.hook.attar_commands(cli=cli)
    assert CliRunner().invoke(cli, ["heard"]).output == "heard you\n"


def test_a_misspelt_hook_is_refused_and_leaves_no_trace() -> None:
    class Misspelt:
        @hookimpl
        def attar_passes(self) -> list[type[Pass]]:
            return [Act]

        @hookimpl
        def attar_obervers(self) -> dict[str, Any]:
            return {}

    registry = Registry()
    with pytest.raises(PluginError, match=r"plugin 'x' of attar-x: [\s\S]*attar_obervers"):
        registry.register(Misspelt(), name="x", distribution="attar-x")
    assert registry.plugins == ()
    assert registry.passes == {}
    registry.register(Plugin(), name="y")
    assert "heard.act" in registry.passes


def test_an_argument_that_the_hook_does_not_have_is_refused() -> None:
    class Greedy:
        @hookimpl
        def attar_passes(self, model: ir.Model) -> list[type[Pass]]:
            return []

    with pytest.raises(PluginError, match="model"):
        Registry().register(Greedy(), name="x")


def test_a_forgotten_hookimpl_is_refused() -> None:
    class Unmarked:
        def attar_passes(self) -> list[type[Pass]]:
            return [Act]

    with pytest.raises(PluginError, match=r"attar_passes is not marked as a hook\n.*@hookimpl"):
        Registry().register(Unmarked(), name="x")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_described_in_the_page_on_plugins(name: str) -> None:
    """The page has a section for the hook, with its signature's arguments and the words of its docstring."""
    page = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^### `{name}\((.*?)\)`\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    assert section, f"docs/plugins.md has no section ### `{name}(...)`"
    arguments = [a for a in inspect.signature(HOOKS[name]).parameters if a != "self"]
    assert [a.strip() for a in section[1].split(",") if a] == arguments
    words = inspect.getdoc(HOOKS[name])
    assert words
    plain = " ".join(section[2].split())
    assert " ".join(words.split()) in plain, f"the section does not say: {words}"
    assert len(plain) > len(words) + 40, "the section says no more than the docstring"


def test_the_page_describes_no_hook_that_does_not_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\battar_[a-z_]+(?=\()", page)) - set(HOOKS) == {
        "attar_pases"
    }  # the example of a misspelt one
    assert re.findall(r"^### `(attar_\w+)", page, re.M) == list(HOOKS), "one section each, in order"
