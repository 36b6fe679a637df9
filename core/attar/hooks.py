"""The hooks that a plugin may implement. Decorate with `attar.hookimpl`; a module or an object of them is the
plugin.

Everything attar itself can do comes in through these same hooks, by the entry-point group `attar`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    import onnx_ir as ir

    from attar.adapters import Adapter
    from attar.context import Context
    from attar.ops import OpRule
    from attar.passes import Pass
    from attar.report import Step
    from attar.runtime import Runtime
    from attar.targets import Target
    from attar.training import TrainingEvent

PROJECT = "attar"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Hook specifications. Names in the returned mappings must be unique over all plugins."""

    @hookspec
    def attar_passes(self) -> Sequence[type[Pass]]:  # type: ignore[empty-body]
        """Pass classes, for recipes, the command line and search."""

    @hookspec
    def attar_adapters(self) -> Sequence[Adapter]:  # type: ignore[empty-body]
        """Adapters, each reading and writing the models of one framework or file format."""

    @hookspec
    def attar_lowerings(self, framework: str) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Operator -> function that writes it in `framework`; teaches an adapter a new operator."""

    @hookspec
    def attar_liftings(self, framework: str) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Framework operator -> function that writes it in the IR."""

    @hookspec
    def attar_targets(self) -> Sequence[Target]:  # type: ignore[empty-body]
        """Targets: where a model will run, and what is fast there."""

    @hookspec
    def attar_runtimes(self) -> Sequence[Runtime]:  # type: ignore[empty-body]
        """Runtimes that run, calibrate and profile a model."""

    @hookspec
    def attar_ops(self) -> Sequence[OpRule]:  # type: ignore[empty-body]
        """Operator rules: channel flow, cost, inputs that may be quantized."""

    @hookspec
    def attar_observers(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Range estimators by name: `f(histogram, levels) -> (low, high)`, levels being the number of
        codes."""

    @hookspec
    def attar_importances(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Channel importances by name, for pruning."""

    @hookspec
    def attar_metrics(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Metrics by name: `f(outputs, labels) -> (sum, count)`, added up over batches."""

    @hookspec
    def attar_before_pass(self, step: Pass, model: ir.Model, ctx: Context) -> None:
        """Called before a pass changes its copy of the model. Look, do not touch."""

    @hookspec
    def attar_after_pass(self, step: Pass, model: ir.Model, ctx: Context, record: Step) -> None:
        """Called after a pass was verified and measured, with what the report will say of it."""

    @hookspec
    def attar_training(self, event: TrainingEvent) -> None:
        """Called while a pass trains: at the start, every few steps, after epochs and evaluations, at the
        end."""

    @hookspec
    def attar_commands(self, cli: click.Group) -> None:
        """Add subcommands to the `attar` command line."""
