"""`attar convert`: a model of one framework as a model of another."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from attar.cli.app import clean, emit, shared_options
from attar.cli.progress import progress
from attar.cli.shell import complete_framework
from attar.errors import InputError


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--to", "to", required=True, shell_complete=complete_framework, help="Framework or format to write."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Example inputs to compare on: an .npy file, or an .npz file with an array an input.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run both models and compare.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the framework's writer; may be repeated.",
)
@click.option(
    "--read-option",
    "reading",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the reader of MODEL; may be repeated.",
)
@shared_options
def convert(
    *,
    model: str,
    to: str,
    output: Path,
    inputs: Path | None,
    verify: bool,
    options: tuple[str, ...],
    reading: tuple[str, ...],
) -> None:
    """Write MODEL for another framework.

    What is written is loaded in its framework and its outputs are compared with those of MODEL before any
    file appears. `attar plugins` shows the frameworks that are installed.

    \b
    Examples:
      attar convert net.keras --to onnx -o net.onnx
      attar convert net.onnx --to tflite -o net.tflite
      attar convert net-symbol.json --to torch -o net.pt2 --inputs images.npy
    """
    import attar

    found = attar.convert(
        model,
        to,
        output,
        inputs=None if inputs is None else _arrays(inputs),
        verify=verify,
        progress=progress(),
        reading=_options("--read-option", reading),
        **_options("--option", options),
    )
    emit(found.to_dict(), lambda: clean(str(found)))


def _options(flag: str, texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is a TOML value where it is one (3, true, [1, 2]), else a word."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip().isidentifier()):
            raise InputError(f"{flag} {text!r} is not of the form NAME=VALUE")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value.strip()
    return found


def _arrays(path: Path) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else found
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zip and header errors of several types
        raise InputError(f"{path} is no .npy or .npz file of plain arrays: {error}") from error
