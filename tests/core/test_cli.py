"""The command line as a whole: help, exit codes, errors, JSON, speed of starting, commands of plugins."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import attar
from attar.cli import cli, extensions
from attar.errors import AttarError, BudgetMissed, ConversionError, InputError, Refused


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    extensions.load.cache_clear()
    yield
    extensions.load.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="attar")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in sorted(group.commands.items()):
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"Usage: attar {' '.join(path)}" in result.stdout
    if path != ("plugin",):
        assert "Examples:" in result.stdout
        assert f"attar {' '.join(path)}" in result.stdout.split("Examples:")[1]
    if path not in {("plugin",), ("completion",)}:
        assert "--json" in result.stdout
        assert "--traceback" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from attar.cli import cli; cli(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich', 'jinja2', 'PIL', 'torch'}; "
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    assert "compress" in done.stdout


def test_the_version_is_that_of_the_distribution() -> None:
    assert run("--version").stdout.startswith(f"attar {importlib.metadata.version('attar')}, Python 3.")


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setitem(vars(attar), "load", load)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no such file: x", hint="look elsewhere"), 1),
        (ConversionError("cannot say it", missing={"Fancy": ["a", "b"]}), 1),
        (Refused("will not", nodes=[("conv", "too small")]), 3),
        (BudgetMissed("too much lost", best=None), 3),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a bug"), 1),
    ],
    ids=lambda e: type(e).__name__ if isinstance(e, BaseException) else str(e),
)
def test_errors_become_messages_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    fails(monkeypatch, error)
    result = run("inspect", "x")
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if isinstance(error, AttarError):
        assert result.stderr == f"error: {error}\n"


def test_an_internal_error_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, RuntimeError("a bug"))
    assert "error: internal error: RuntimeError: a bug\n  hint: a defect of" in run("inspect", "x").stderr


@pytest.mark.parametrize("arguments", [("-v", "inspect", "x"), ("inspect", "x", "--traceback")])
def test_the_traceback_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    fails(monkeypatch, RuntimeError("a bug"))
    stderr = run(*arguments).stderr
    assert "Traceback (most recent call last)" in stderr
    assert "in load" in stderr


def test_with_json_an_error_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ConversionError("cannot say it", missing={"Fancy": ["a", "b"]}, hint="leave it"))
    result = run("inspect", "x", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "error": {
            "type": "ConversionError",
            "message": "cannot say it\n  Fancy: a, b",
            "hint": "leave it",
            "missing": {"Fancy": ["a", "b"]},
        }
    }
    assert result.stderr.startswith("error: cannot say it")


def test_names_in_errors_cannot_write_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, InputError("no such file: \x1b[2Jx", hint="a\x07b"))
    assert run("inspect", "x").stderr == "error: no such file: \\x1b[2Jx\n  hint: a\\x07b\n"


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("inspect",), ("inspect", "x", "--nonsense"), ("compress", "x")]
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: attar" in result.stderr


# -- commands of plugins ------------------------------------------------------


class Entry:
    """Stands for an installed entry point."""

    def __init__(self, name: str, value: str, load: Callable[[], object]) -> None:
        self.name, self.value, self.load = name, value, load
        self.dist = None


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, **sources: str) -> None:
    """Make modules of `sources` importable, and entry points of the same names."""
    monkeypatch.syspath_prepend(str(folder))
    entries = []
    for name, source in sources.items():
        (folder / f"probe_{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"probe_{name}", raising=False)
        entries.append(importlib.metadata.EntryPoint(name, f"probe_{name}", "attar"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: entries)


HELLO = """
import click
from attar.hooks import hookimpl

@hookimpl
def attar_commands(cli):
    @cli.command()
    def {name}():
        "Say hello."
        click.echo("hello from {name}")
"""


def test_a_plugin_adds_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, one=HELLO.format(name="greet"))
    assert re.search(r"^  greet +Say hello\.$", run("--help").stdout, re.M)
    assert run("greet").stdout == "hello from greet\n"


def test_a_plugin_without_commands_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, idle="raise SystemExit('imported')", one=HELLO.format(name="greet"))
    assert run("greet").exit_code == 0
    assert "probe_idle" not in sys.modules


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import missing_thing  # attar_commands", "ModuleNotFoundError"),
        (
            HELLO.format(name="greet").replace("@cli", "raise ValueError('broke')\n    @cli"),
            "broke",
        ),
        (HELLO.format(name="inspect"), "'inspect', which exists already"),
        (
            HELLO.format(name="greet").replace("attar_commands", "attar_commandos") + "# attar_commands",
            "attar_commandos",
        ),
    ],
    ids=["import", "hook", "taken", "misspelt"],
)
def test_a_broken_plugin_costs_only_its_own_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, told: str
) -> None:
    install(monkeypatch, tmp_path, bad=source, good=HELLO.format(name="wave"))
    shown = run("--help")
    assert shown.exit_code == 0
    assert "wave" in shown.stdout
    assert "Show what is in MODEL" in shown.stdout
    assert "warning: the commands of plugin bad are missing" in shown.stderr
    assert told in shown.stderr
    assert run("wave").stdout == "hello from wave\n"
    assert run("completion", "bash").exit_code == 0
    unknown = run("gret")
    assert unknown.exit_code == 2
    assert "plugin bad" in unknown.stderr


def test_two_plugins_cannot_bring_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, a=HELLO.format(name="greet"), b=HELLO.format(name="greet"))
    assert run("greet").stdout == "hello from greet\n"
    assert "plugin 'b' brings a command 'greet', which exists already" in run("--help").stderr


def test_a_disabled_plugin_brings_no_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, one=HELLO.format(name="greet"))
    monkeypatch.setenv("ATTAR_DISABLED_PLUGINS", "other, one")
    assert run("greet").exit_code == 2


def test_what_has_no_source_may_have_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "probe_package").mkdir()
    (tmp_path / "probe_package" / "__init__.py").write_text("from probe_package.hooks import *")
    (tmp_path / "probe_package" / "hooks.py").write_text("def attar_commands(cli): ...")
    assert extensions.mentions_hook("probe_package:thing")
    assert extensions.mentions_hook("_struct")  # compiled
    assert extensions.mentions_hook("does_not_exist")
    assert not extensions.mentions_hook("json")
