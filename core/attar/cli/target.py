"""`attar calibrate-target`: measure what kernels cost on this machine, for the planner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attar.cli.app import clean, emit, note, shared_options
from attar.cli.passes import table
from attar.cli.progress import progress
from attar.errors import InputError

if TYPE_CHECKING:
    from attar.costs import CostTable


@click.command("calibrate-target")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File for the table; printed only if not given."
)
@click.option(
    "--runs",
    type=click.IntRange(min=3),
    default=15,
    show_default=True,
    help="How many timed runs of each kernel.",
)
@shared_options
def calibrate_target(output: Path | None, runs: int) -> None:
    """Measure what kernels cost on this machine.

    Times single operators in float and on integers, one thread, and fits the table that tells the planner
    where integers pay. Takes about two minutes; let the machine do nothing else meanwhile. The tables that
    come with attar were measured on other processors.

    \b
    Examples:
      attar calibrate-target -o costs.json
      attar compress model.onnx --calibration calib.npz --costs costs.json -o small.onnx
    """
    from attar.calibrate import calibrate_target as measure
    from attar.files import write_atomic

    if output is not None:
        if output.is_dir():
            raise InputError(f"cannot write {output}: it is a folder")
        if not output.parent.is_dir():
            raise InputError(f"cannot write {output}: there is no folder {output.parent}")
    found = measure(runs=runs, progress=progress())
    if output is not None:
        write_atomic(output, found.to_json().encode())
    written = {} if output is None else {"output": str(output)}
    emit({**found.to_dict(), **written}, lambda: _text(found))
    if output is not None:
        note(f"output: {output}")


def _text(found: CostTable) -> str:
    rows = [("kernel", "type", "us a call", "ns a 1000 MACs", "ns an element")]
    rows += [
        (kind, dtype, f"{cost.call:.2f}", f"{cost.mac * 1e6:.2f}", f"{cost.element * 1e3:.3f}")
        for (kind, dtype), cost in sorted(found.rows.items())
    ]
    return f"{clean(found.measured_on)}\n\n{table(rows)}"
