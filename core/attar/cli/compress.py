"""`attar compress`: the whole work, from a file to a smaller file and a report."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attar.cli import data as given
from attar.cli.app import EXIT_DECLINED, emit_json, note, shared_options, state_of, threads_option
from attar.cli.progress import progress
from attar.cli.shell import complete_metric, complete_pass, complete_preset, target_option
from attar.errors import InputError, RecipeError

if TYPE_CHECKING:
    from attar.passes import Pass
    from attar.run import Result


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-r", "--recipe", type=click.Path(path_type=Path), help="TOML file with one [[pass]] table a step."
)
@click.option(
    "--preset", shell_complete=complete_preset, help="A recipe that attar knows by name, such as int8."
)
@click.option(
    "--pass",
    "steps",
    multiple=True,
    metavar="NAME[:OPT=VAL,...]",
    shell_complete=complete_pass,
    help="One step of the recipe; may be given several times. See `attar passes`.",
)
@given.data_option("--calibration", "calibration", "Data that the model is calibrated on.")
@given.data_option("--train", "training", "Data for passes that train, with labels where these need them.")
@given.preprocess_options
@click.option(
    "--evaluate", "metric", shell_complete=complete_metric, help="Metric to measure before and after."
)
@given.data_option(
    "--data", "labelled", "Labelled data for --evaluate; else the labels of the calibration data."
)
@target_option
@click.option(
    "--costs",
    type=click.Path(path_type=Path),
    help="Kernel times to plan with, a file from `attar calibrate-target`.",
)
@click.option(
    "--max-drop", type=click.FloatRange(min=0), help="Largest loss of the metric that is acceptable."
)
@threads_option
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File for the result.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File for the report: .html, .json or .txt; may be given several times.",
)
@shared_options
def compress(
    model: str,
    *,
    recipe: Path | None,
    preset: str | None,
    steps: tuple[str, ...],
    calibration: str | None,
    training: str | None,
    metric: str | None,
    labelled: str | None,
    target: str,
    costs: Path | None,
    max_drop: float | None,
    threads: int,
    seed: int,
    output: Path,
    reports: tuple[Path, ...],
    **image: Any,
) -> None:
    """Make MODEL smaller and faster, and report.

    Without --recipe, --preset or --pass the preset int8 runs. If compression does not pay, OUTPUT is the
    original model and the exit code is 3.

    \b
    Examples:
      attar compress model.onnx --calibration calib.npz -o small.onnx
      attar compress model.onnx --preset int8 --calibration images/ --image-size 224 \\
          --image-mean 0.485,0.456,0.406 --image-std 0.229,0.224,0.225 -o small.onnx --report report.html
      attar compress model.onnx -r recipe.toml --calibration calib.npz \\
          --evaluate top1 --data test.npz --max-drop 0.01 -o small.onnx
      attar compress model.onnx --pass fuse.inference --pass quantize.static:observer=minmax \\
          --calibration calib.npz -o small.onnx --json
    """
    if sum(map(bool, (recipe, preset, steps))) > 1:
        raise click.UsageError("give one of --recipe, --preset and --pass")
    if metric is not None and labelled is None and calibration is None:
        raise click.UsageError("--evaluate needs --data, labelled data to measure on")
    if labelled is not None and metric is None:
        raise click.UsageError("--data needs --evaluate, the metric to measure")
    if max_drop is not None and metric is None:
        raise click.UsageError(
            "--max-drop needs --evaluate and --data: without a metric there is no drop to bound"
        )
    _check_outputs(model, output, reports)

    import attar
    from attar.recipe import load_recipe

    source: Any = recipe or [parse_step(step) for step in steps] or preset or "int8"
    chosen = load_recipe(source)
    _check_needs(chosen, calibration=calibration, evaluate=metric, training=training)
    bars = progress()
    with bars.task("compressing"):
        result = attar.compress(
            model,
            chosen,
            calibration=calibration,
            training=training,
            preprocess=given.preprocess(image),
            evaluate=metric if labelled is None else (labelled, metric),
            target=target,
            costs=costs,
            max_drop=max_drop,
            threads=threads,
            seed=seed,
            progress=bars,
        )
    result.save(output)
    for path in reports:
        result.report.save(path)
    show_result(result, {"output": str(output), "reports": [str(path) for path in reports]})


def show_result(result: Result, files: dict[str, Any]) -> None:
    """Print the report and leave with the exit code that goes with its verdict."""
    report = result.report
    if state_of().json:
        emit_json({**report.to_dict(), **files})
    elif sys.stdout.isatty():
        from rich.console import Console

        from attar.render import rich_report

        Console().print(rich_report(report))
    else:
        from attar.render import text

        click.echo(text(report), nl=False)
    if not state_of().json:
        for name, value in files.items():
            for path in value if isinstance(value, list) else [value]:
                note(f"{name.removesuffix('s')}: {path}")
    if report.verdict == "unchanged":
        raise click.exceptions.Exit(EXIT_DECLINED)


def parse_step(text: str) -> dict[str, Any]:
    """`name:opt=val,opt=val` as a recipe table. Values are read as TOML; what is not TOML is a string.

    Commas inside brackets and quotes belong to the value: `prune.channels:ratio=0.3,layers=["a", "b"]`.

    Raises:
        RecipeError: an option has no `=`, or is given twice.
    """
    name, _, rest = text.partition(":")
    table: dict[str, Any] = {"name": name.strip()}
    for part in _split(rest):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RecipeError(
                f"--pass {text!r}: {part!r} is not option=value", hint="write name:opt=val,opt=val"
            )
        if key in table:
            raise RecipeError(f"--pass {text!r}: {key!r} is given twice")
        table[key] = _value(name.strip(), key, value.strip())
    return table


def _value(name: str, key: str, text: str) -> Any:
    """The value as TOML says it, else the text itself: a string needs no quotes."""
    from attar.registry import default_registry

    cls = default_registry().passes.get(name)
    option = next((o for o in cls.options() if o.name == key), None) if cls is not None else None
    if option is not None and option.type is str and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


_NEEDS = {
    "calibration": ("calibration data", "--calibration PATH"),
    "evaluate": ("a metric", "--evaluate METRIC --data PATH"),
    "training": ("training data", "--train PATH"),
}


def _check_needs(passes: tuple[Pass, ...], **given: str | None) -> None:
    """Say in flags what a pass lacks; the API would say it in arguments."""
    for step in passes:
        for need in step.needs:
            if given.get(need, "") is None:
                what, flags = _NEEDS[need]
                raise InputError(f"pass {step.name!r} needs {what}", hint=f"give {flags}")


def _check_outputs(model: str, output: Path, reports: tuple[Path, ...]) -> None:
    """Find out now, not after minutes of work, that the result has nowhere to go."""
    if output.exists() and Path(model).exists() and output.samefile(model):
        raise click.UsageError(f"{output} is the model itself; the result needs a file of its own")
    for path in (output, *reports):
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
    for path in reports:
        if path.suffix.lower() in (".html", ".htm"):
            _check_jinja2()


def _check_jinja2() -> None:
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise InputError("HTML reports need jinja2", hint="pip install attar[report], or ask for .json")
