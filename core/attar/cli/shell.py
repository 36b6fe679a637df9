"""Tab completion: the script that a shell needs, and what completes names of passes, targets, metrics and
frameworks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from attar.cli.app import cli, traceback_option
from attar.errors import AttarError
from attar.passes import Pass

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completes(names: Callable[[], Iterable[tuple[str, str]]]) -> Complete:
    """A click callback. A shell's line is no place for errors, so a broken plugin only means fewer names."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(name, help=text) for name, text in names() if name.startswith(incomplete)]
        except Exception:
            return []

    return complete


def _passes() -> list[tuple[str, str]]:
    from attar.registry import default_registry

    found = default_registry().passes
    return [(name, first_sentence(doc_of(cls))) for name, cls in found.items()]


def _targets() -> list[tuple[str, str]]:
    from attar.registry import default_registry

    return [(name, target.description) for name, target in default_registry().targets.items()]


def _metrics() -> list[tuple[str, str]]:
    from attar.registry import default_registry

    # a plugin may give a plain function instead of a Metric
    found = default_registry().metrics
    return [
        (name, first_sentence(getattr(metric, "doc", None) or metric.__doc__))
        for name, metric in found.items()
    ]


def _presets() -> list[tuple[str, str]]:
    from attar.recipe import PRESETS

    return [(name, ", ".join(table["name"] for table in tables)) for name, tables in PRESETS.items()]


def _frameworks() -> list[tuple[str, str]]:
    from attar.registry import default_registry

    return [(name, first_sentence(adapter.__doc__)) for name, adapter in default_registry().adapters.items()]


def doc_of(cls: type[Pass]) -> str:
    """The docstring of a pass; without one, dataclasses put the signature in its place, which is none."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    return "" if doc.startswith(f"{cls.__name__}(") else doc


def first_sentence(doc: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((doc or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph)[0]


complete_pass = _completes(_passes)
complete_target = _completes(_targets)
complete_metric = _completes(_metrics)
complete_framework = _completes(_frameworks)
complete_preset = _completes(_presets)

target_option = click.option(
    "--target", default="cpu", show_default=True, shell_complete=complete_target, help="Where it will run."
)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@traceback_option
def completion(shell: str) -> None:
    """Print the tab-completion script of SHELL.

    It completes commands, options, and names of passes, targets and metrics.

    \b
    Examples:
      attar completion bash > ~/.local/share/bash-completion/completions/attar
      attar completion zsh > "${fpath[1]}/_attar"
      attar completion fish > ~/.config/fish/completions/attar.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise AttarError(f"this version of click knows no completion for {shell}")
    script = kind(cli, {}, "attar", "_ATTAR_COMPLETE")
    click.echo(
        script.source_template % script.source_vars()
    )  # source() would start the shell to ask its version
