"""`attar plugins`, `attar passes`, `attar plugin new`, completion, and progress bars."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

import attar.registry
from attar.cli import cli
from attar.cli.progress import RichProgress, progress
from attar.hooks import hookimpl
from attar.passes import Choice, Doc, Pass, Range
from attar.progress import Silent
from attar.registry import Registry


class Channels(Pass, name="probe.channels"):
    """Remove whole channels, least important first.

    More about it.
    """

    requires = ("probe.fold",)
    needs = ("calibration",)

    ratio: Annotated[float, Range(0.0, 0.95), Doc("share of the channels to remove")] = 0.5
    importance: Annotated[str, Choice("l1", "l2")] = "l1"
    keep: tuple[str, ...] = ()
    limit: int | None = None


class Fold(Pass, name="probe.fold"):
    pass


class Good:
    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return [Channels, Fold]

    @hookimpl
    def attar_importances(self) -> dict[str, Any]:
        return {"taylor": lambda: None}


class Bad:
    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        raise OSError("no \x1b licence")


class Thief:
    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return [Fold]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    made.register(Good(), name="good", distribution="attar-good", version="1.2")
    made.register(Bad(), name="bad", distribution="attar-bad", version="0.1")
    made.broken["gone"] = ImportError("no module named gone")
    monkeypatch.setattr(attar.registry, "default_registry", lambda: made)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="attar")


@pytest.mark.usefixtures("registry")
def test_plugins_are_listed_with_what_they_bring_and_what_is_broken() -> None:
    result = run("plugins", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "plugins": [
            {
                "name": "good",
                "distribution": "attar-good",
                "version": "1.2",
                "brings": {"passes": ["probe.channels", "probe.fold"], "importances": ["taylor"]},
            },
            {"name": "bad", "distribution": "attar-bad", "version": "0.1", "brings": {}},
        ],
        "broken": {"gone": "ImportError: no module named gone", "bad": "OSError: no \x1b licence"},
        "conflicts": [],
    }
    text = run("plugins").stdout
    assert "good  (attar-good 1.2)\n  passes: probe.channels, probe.fold\n  importances: taylor\n" in text
    assert (
        "failed to load:\n  gone: ImportError: no module named gone\n  bad: OSError: no \\x1b licence\n"
        in text
    )


def test_names_with_two_owners_are_shown(registry: Registry) -> None:
    registry.register(Thief(), name="thief", distribution="attar-thief")
    result = run("plugins")
    assert result.exit_code == 0, result.output
    assert (
        "'probe.fold' (attar_passes) is brought by both good (attar-good) and thief (attar-thief)"
        in result.stdout
    )
    assert "thief  (attar-thief )\n  passes: probe.fold" in result.stdout


@pytest.mark.usefixtures("registry")
def test_passes_are_listed() -> None:
    assert run("passes").stdout.splitlines() == [
        "probe.channels  Remove whole channels, least important first.",
        "probe.fold",
    ]
    assert [p["name"] for p in json.loads(run("passes", "--json").stdout)["passes"]] == [
        "probe.channels",
        "probe.fold",
    ]


@pytest.mark.usefixtures("registry")
def test_the_options_of_a_pass() -> None:
    text = run("passes", "probe.channels").stdout
    rows = [line.split() for line in text.splitlines() if line]
    assert "runs after: probe.fold" in text
    assert "needs: calibration" in text
    assert "More about it." in text
    assert ["ratio", "float", "0.5", "[0,", "0.95]", "share", "of", "the", "channels", "to", "remove"] in rows
    assert ["importance", "str", "'l1'", "l1", "|", "l2"] in rows
    assert ["keep", "list", "of", "str", "()"] in rows
    assert ["limit", "int", "or", "none", "None"] in rows
    told = json.loads(run("passes", "probe.channels", "--json").stdout)
    assert told["options"][0] == {
        "name": "ratio",
        "type": "float",
        "required": False,
        "default": 0.5,
        "range": "[0, 0.95]",
        "choices": None,
        "doc": "share of the channels to remove",
    }
    assert "no options" in run("passes", "probe.fold").stdout


@pytest.mark.usefixtures("registry")
def test_an_unknown_pass_is_an_error_with_a_suggestion() -> None:
    result = run("passes", "probe.chanels")
    assert result.exit_code == 1
    assert "did you mean 'probe.channels'" in result.stderr


def test_plugin_new_writes_a_plugin(tmp_path: Path) -> None:
    result = run("plugin", "new", "probing", "-d", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {tmp_path / 'attar-probing'}\n"
    assert (tmp_path / "attar-probing" / "pyproject.toml").is_file()
    again = run("plugin", "new", "probing", "-d", str(tmp_path))
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    told = json.loads(run("plugin", "new", "other", "-d", str(tmp_path), "--json").stdout)
    assert Path(told["path"]).is_dir()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_of_that_shell(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_ATTAR_COMPLETE={shell}_complete" in result.stdout
    found = shutil.which(shell)
    if found:
        checked = subprocess.run(
            [found, "-n"], input=result.stdout, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def completions(arguments: list[str], word: str) -> list[str]:
    return [
        c.value for c in ShellComplete(cli, {}, "attar", "_ATTAR_COMPLETE").get_completions(arguments, word)
    ]


@pytest.mark.usefixtures("registry")
def test_names_are_completed() -> None:
    assert completions([], "pl") == ["plugin", "plugins"]
    assert completions(["passes"], "probe.c") == ["probe.channels"]
    assert completions(["compress", "m.onnx", "--pass"], "probe") == ["probe.channels", "probe.fold"]
    assert completions(["compress", "m.onnx", "--preset"], "int8") == ["int8", "int8-fast"]
    assert "top1" in completions(["evaluate", "m.onnx", "--metric"], "to")
    assert "cpu" in completions(["compress", "m.onnx", "--target"], "c")


def test_completion_is_silent_when_plugins_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Registry:
        raise RuntimeError("broken")

    monkeypatch.setattr(attar.registry, "default_registry", broken)
    assert completions(["passes"], "p") == []


# -- progress -----------------------------------------------------------------


def drawn(color: bool = False) -> tuple[RichProgress, io.StringIO]:
    from rich.console import Console

    file = io.StringIO()
    return RichProgress(Console(file=file, force_terminal=True, width=100, color_system=None)), file


def test_bars_show_nested_tasks_and_go_away() -> None:
    bars, file = drawn()
    with bars.task("outer [bold]", 2) as outer:
        with bars.task("inner \x1b[2J") as inner:
            inner.advance()
        outer.advance()
        bars._bars.refresh()  # type: ignore[union-attr]
    shown = file.getvalue()
    assert "outer [bold]" in shown
    assert "1/2" in shown
    assert "inner \x1b[2J" not in shown
    assert bars._bars is None
    with bars.task("again", 1) as task:
        task.advance()
    assert "again" in file.getvalue()


def test_bars_go_away_after_an_error() -> None:
    bars, _ = drawn()
    with pytest.raises(click.Abort), bars.task("outer"), bars.task("inner"):
        raise click.Abort
    assert bars._bars is None
    assert bars._open == 0


def test_there_are_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress(), Silent)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress(), RichProgress)
