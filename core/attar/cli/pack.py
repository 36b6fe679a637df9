"""`attar pack` and `attar unpack`: models in small files and back, without loss."""

from __future__ import annotations

from pathlib import Path

import click

from attar.cli.app import clean, emit, shared_options
from attar.cli.progress import progress
from attar.errors import InputError


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The .attar file to write."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="A recipe file to keep with the model.")
@shared_options
def pack(model: str, output: Path, recipe: Path | None) -> None:
    """Pack MODEL into an .attar bundle, without loss.

    Weights that are sparse, clustered or quantized take few bytes in it. Whatever reads models of attar reads
    bundles; `attar unpack` gives plain ONNX back, every tensor to the byte.

    \b
    Examples:
      attar pack small.onnx -o small.attar
      attar unpack small.attar -o small.onnx
    """
    import attar
    from attar import bundle
    from attar.recipe import load_recipe

    if not bundle.is_bundle(output):
        raise InputError(f"a bundle's name ends in .attar, not {output.suffix or 'nothing'}")
    passes = None if recipe is None else load_recipe(recipe)
    with progress().task("packing"):
        made = bundle.write(attar.load(model), output, recipe=passes)
    facts = {
        "output": str(output),
        "bytes": made.bytes,
        "plain_bytes": made.plain,
        "ratio": made.ratio,
        "weights": {n: {"form": f, "bytes": b, "plain": p} for n, (f, b, p) in made.weights.items()},
    }
    emit(facts, lambda: clean(f"{output}: {made}"))


@click.command()
@click.argument("file", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx file to write."
)
@click.option("--limit", type=click.IntRange(min=1), help="Bytes that it may unpack to.")
@shared_options
def unpack(file: Path, output: Path, limit: int | None) -> None:
    """Unpack BUNDLE into a plain ONNX file.

    Recipe and report stay in the bundle, which is a zip. A bundle that would unpack to far more than real
    models do is refused unless --limit allows it.

    \b
    Examples:
      attar unpack small.attar -o small.onnx
      attar unpack huge.attar -o huge.onnx --limit 8000000000
    """
    from attar import bundle, graph

    with progress().task("unpacking"):
        found = bundle.read(file, limit=limit)
        written = graph.save(found.model, output)
    facts = {"output": str(output), "files": [str(p) for p in written], "bytes": graph.byte_size(found.model)}
    emit(facts, lambda: clean(f"{output}: {facts['bytes']} bytes of weights"))
