"""`attar profile`, `attar compare`, `attar evaluate`: figures of models as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from attar.cli import data as given
from attar.cli.app import clean, emit, note, shared_options, threads_option
from attar.cli.passes import table
from attar.cli.progress import progress
from attar.cli.shell import complete_metric
from attar.render import figures
from attar.render.text import before_after, latency_line
from attar.report import Kernel

if TYPE_CHECKING:
    from attar.api import Comparison, Profile

runs_option = click.option(
    "--runs", type=click.IntRange(min=3), default=30, show_default=True, help="How many timed runs."
)


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--inputs", type=click.Path(), help="Data whose first batch is run; one made-up sample if not given."
)
@threads_option
@runs_option
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many kernels to show."
)
@shared_options
def profile(model: str, inputs: str | None, threads: int, runs: int, top: int) -> None:
    """Measure latency, and the time of each kernel.

    Shows the TOP slowest kernels; --json gives all.

    \b
    Examples:
      attar profile model.onnx
      attar profile model.onnx --threads 4 --runs 100 --json
    """
    import attar

    with progress().task("profiling"):
        loaded = attar.load(model)
        feeds = None if inputs is None else given.first_batch(inputs, loaded)
        found = attar.profile(loaded, threads=threads, runs=runs, inputs=feeds)
    emit(found.to_dict(), lambda: _profile_text(found, threads, runs, top))


def _profile_text(found: Profile, threads: int, runs: int, top: int) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.shapes.items())
    head = (
        f"{figures.milliseconds(found.latency_ms)} ms, median of {runs} runs on {threads} thread(s), {shapes}"
    )
    parts = [clean(head)]
    spent = sum(k.milliseconds or 0.0 for k in found.kernels)
    groups = [("by kind", "kernels", "ms", "share")]
    groups += [
        (kind, str(len(kernels)), figures.milliseconds(time), f"{time / spent:.1%}" if spent else "-")
        for kind, kernels, time in _by_kind(found.kernels)
    ]
    parts.append(table(groups))
    slow = figures.slowest(found.kernels, top)
    if slow:
        rows = [("slowest kernels", "kind", "ms", "")]
        rows += [
            (
                f"{figures.name(k.op)} {figures.name(k.name)}",
                k.kind,
                figures.milliseconds(k.milliseconds),
                figures.clean(k.reason),
            )
            for k in slow
        ]
        parts.append(table(rows))
    return "\n\n".join(parts)


def _by_kind(kernels: Iterable[Kernel]) -> list[tuple[str, list[Kernel], float]]:
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        found.setdefault(kernel.kind, []).append(kernel)
    timed = [(kind, members, sum(k.milliseconds or 0.0 for k in members)) for kind, members in found.items()]
    return sorted(timed, key=lambda item: -item[2])


@click.command()
@click.argument("before", type=click.Path())
@click.argument("after", type=click.Path())
@given.data_option("--inputs", "inputs", "Inputs to compare the outputs on; made up if not given.")
@given.preprocess_options
@threads_option
@runs_option
@shared_options
def compare(before: str, after: str, inputs: str | None, threads: int, runs: int, **image: Any) -> None:
    """Compare two models side by side.

    Shown are size, kernels, speed, and how far the outputs differ. Both are timed in turns in one
    process, so that whatever else the machine does meets both alike.

    \b
    Examples:
      attar compare model.onnx small.onnx
      attar compare model.onnx small.onnx --inputs images/ --image-size 224 --json
    """
    import attar

    bars = progress()
    with bars.task("comparing"):
        found = attar.compare(
            before,
            after,
            data=inputs,
            preprocess=given.preprocess(image),
            threads=threads,
            runs=runs,
            progress=bars,
        )
    if inputs is None:
        note("outputs were compared on made-up inputs, which says little of a trained network; see --inputs")
    emit(found.to_dict(), lambda: _comparison_text(found))


def _comparison_text(found: Comparison) -> str:
    rows = figures.compared(found.before, found.after, found.speed, found.outputs)
    return "\n".join([*before_after(rows), latency_line(found.speed)])


@click.command()
@click.argument("model", type=click.Path())
@given.data_option("--data", "data", "Labelled data to measure on.", required=True)
@click.option(
    "--metric", default="top1", show_default=True, shell_complete=complete_metric, help="Name of the metric."
)
@given.preprocess_options
@threads_option
@shared_options
def evaluate(model: str, data: str, metric: str, threads: int, **image: Any) -> None:
    """Measure METRIC of MODEL on labelled data.

    \b
    Examples:
      attar evaluate model.onnx --data test.npz
      attar evaluate model.onnx --data val/ --image-size 224 --metric top5
    """
    import attar

    bars = progress()
    with bars.task("evaluating"):
        value = attar.evaluate(
            model, data, metric, preprocess=given.preprocess(image), threads=threads, progress=bars
        )
    emit(
        {"model": model, "data": data, "metric": metric, "value": value},
        lambda: clean(f"{metric} {figures.metric(value)}"),
    )
