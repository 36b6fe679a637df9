"""`attar demo`: a whole compression of a small network that comes with attar."""

from __future__ import annotations

from pathlib import Path

import click

from attar.cli.app import shared_options, threads_option
from attar.cli.compress import show_result
from attar.cli.progress import progress


@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("attar-demo"),
    show_default=True,
    help="Folder for both models and the reports; made if it is not there.",
)
@threads_option
@shared_options
def demo(keep: Path, threads: int) -> None:
    """See it work on a small trained network.

    The network comes with attar: nothing is downloaded and no framework is needed.

    \b
    Examples:
      attar demo
      attar demo --keep /tmp/demo --json
    """
    from attar.demo import run_demo

    show_result(run_demo(keep, progress=progress(), threads=threads), {"directory": str(keep)})
