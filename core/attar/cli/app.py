"""The root command: exit codes, error messages, JSON, and the options that every command shares.

Exit codes: 0 fine, 1 an error, 2 wrong usage, 3 compression did not pay or was declined, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from attar.cli import extensions
from attar.errors import AttarError, BudgetMissed, ConversionError, Refused

EXIT_ERROR = 1
EXIT_DECLINED = 3
EXIT_INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class State:
    """What the shared options said."""

    json: bool = False
    traceback: bool = False


class Root(click.Group):
    """The `attar` group: commands of plugins, and one place where errors become messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *extensions.load().commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Our own command, else a plugin's: plugins are looked at only when they may be needed."""
        return super().get_command(ctx, cmd_name) or extensions.load().commands.get(cmd_name)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        _warn_of_broken()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            for name, error in extensions.load().broken.items():
                click.echo(
                    f"warning: the commands of plugin {clean(name)} are missing: {clean(error)}", err=True
                )
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AttarError as error:
            _stop_if_interrupted(ctx, error)
            _tell(state_of(ctx), error)
            ctx.exit(EXIT_DECLINED if isinstance(error, Refused | BudgetMissed) else EXIT_ERROR)
        except KeyboardInterrupt as error:
            _stop_if_interrupted(ctx, error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output went away; click ends quietly
            _stop_if_interrupted(ctx, error)
            found = AttarError(
                f"internal error: {type(error).__name__}: {error}",
                hint="a defect of attar or of a plugin; run again with --traceback and report what it prints",
            )
            found.__cause__ = error
            _tell(state_of(ctx), found)
            ctx.exit(EXIT_ERROR)


def _stop_if_interrupted(ctx: click.Context, error: BaseException | None) -> None:
    """End if this is Ctrl-C, or comes from it: extension modules that are interrupted while they load raise
    an ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        error = error.__cause__ or error.__context__


def state_of(ctx: click.Context | None = None) -> State:
    """The state of this run of the command line."""
    root = (ctx or click.get_current_context()).find_root()
    if not isinstance(root.obj, State):
        root.obj = State()
    return root.obj


def clean(text: object) -> str:
    """Lines of text with control characters made visible, so that no file name rewrites the terminal."""
    from attar.render.figures import clean as clean_line

    return "\n".join(clean_line(line) for line in str(text).split("\n"))


def _warn_of_broken() -> None:
    for name, error in extensions.load().broken.items():
        note(f"warning: the commands of plugin {name} are missing: {type(error).__name__}: {error}")


def _tell(state: State, error: AttarError) -> None:
    if state.traceback:
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"error: {clean(error)}", err=True)
    if state.json:
        told: dict[str, Any] = {
            "type": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
        }
        if isinstance(error, ConversionError):
            told["missing"] = error.missing
        emit_json({"error": told})


def emit_json(payload: Mapping[str, Any]) -> None:
    """Print one JSON document; numbers that JSON does not have become null."""
    from attar.report import plain

    click.echo(json.dumps(plain(payload), indent=2, allow_nan=False))


def emit(payload: Mapping[str, Any], text: Callable[[], str]) -> None:
    """Print `payload` if --json was given, `text()` otherwise."""
    if state_of().json:
        emit_json(payload)
    else:
        click.echo(text().rstrip("\n"))


def note(message: str) -> None:
    """Say something on stderr, where it is never mistaken for a result."""
    click.echo(clean(message), err=True)


def _set(attribute: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            setattr(state_of(ctx), attribute, True)

    return callback


def traceback_option(function: F) -> F:
    return click.option(
        "-v",
        "--traceback",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set("traceback"),
        help="Show the traceback of an error.",
    )(function)


def json_option(function: F) -> F:
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set("json"),
        help="Print only JSON on stdout.",
    )(function)


def shared_options(function: F) -> F:
    """--json and --traceback."""
    return json_option(traceback_option(function))


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads of the runtime; 0 lets it choose.",
)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"attar {importlib.metadata.version('attar')}, Python {sys.version.split()[0]}")
        ctx.exit()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 error, 2 wrong usage, 3 compression did not pay or was declined, "
    "130 interrupted, 143 terminated.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show versions."
)
@traceback_option
def cli() -> None:
    """Make trained networks smaller and faster, and prove it.

    \b
    Examples:
      attar demo
      attar inspect model.onnx
      attar compress model.onnx --calibration images/ -o small.onnx --report report.html
      attar compare model.onnx small.onnx
    """
