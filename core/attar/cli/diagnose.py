"""`attar diagnose`: why a quantized model loses accuracy."""

from __future__ import annotations

from typing import Any

import click

from attar.cli import data as given
from attar.cli.app import clean, emit, shared_options, threads_option
from attar.cli.progress import progress
from attar.cli.shell import complete_metric, complete_preset, target_option


@click.command()
@click.argument("model", type=click.Path())
@given.data_option("--calibration", "calibration", "Inputs to learn ranges from.", required=True)
@given.data_option("--data", "data", "Labelled data to measure the metric on.")
@click.option(
    "--metric", default="top1", show_default=True, shell_complete=complete_metric, help="With --data."
)
@click.option(
    "--recipe", default="int8", show_default=True, shell_complete=complete_preset, help="What to explain."
)
@target_option
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Layers to try in float.",
)
@given.preprocess_options
@threads_option
@shared_options
def diagnose(
    *,
    model: str,
    calibration: str,
    data: str | None,
    metric: str,
    recipe: str,
    target: str,
    top: int,
    threads: int,
    **image: Any,
) -> None:
    """Show why MODEL loses accuracy when it is quantized.

    For each layer: the noise that it alone brings to the outputs, the noise in its own result, what
    stands out in its weights and inputs, what to try, and for the TOP gravest layers what leaving each in
    float would give and cost, measured.

    \b
    Examples:
      attar diagnose model.onnx --calibration images/ --image-size 224
      attar diagnose model.onnx --calibration calib.npz --data test.npz --top 10 --json
    """
    import attar

    found = attar.diagnose(
        model,
        recipe,
        calibration=calibration,
        preprocess=given.preprocess(image),
        evaluate=None if data is None else (data, metric),
        target=target,
        top=top,
        threads=threads,
        progress=progress(),
    )
    emit(found.to_dict(), lambda: clean(str(found)))
