"""The command line. Importing it costs click and the standard library; the rest waits for a command."""

from __future__ import annotations

import signal
from typing import NoReturn

from attar.cli.app import cli
from attar.cli.compress import compress
from attar.cli.convert import convert
from attar.cli.demo import demo
from attar.cli.diagnose import diagnose
from attar.cli.inspect import inspect
from attar.cli.measure import compare, evaluate, profile
from attar.cli.pack import pack, unpack
from attar.cli.passes import passes
from attar.cli.plugins import plugin, plugins
from attar.cli.shell import completion
from attar.cli.target import calibrate_target

__all__ = ["cli", "main"]

for _command in (
    compress, convert, diagnose, inspect, profile, compare, evaluate, passes, plugins, plugin, demo,
    completion, calibrate_target, pack, unpack,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Entry point of the `attar` script."""
    signal.signal(signal.SIGTERM, _terminated)
    cli(prog_name="attar")


def _terminated(number: int, frame: object) -> NoReturn:
    """Unwind instead of dying on the spot, so that no temporary files stay behind."""
    raise SystemExit(128 + number)
