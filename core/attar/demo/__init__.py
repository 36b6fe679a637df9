"""A whole compression on a small real network that comes with attar: `attar demo`, or `run_demo()`.

No framework is needed and nothing is fetched. How the network was made is in `attar.demo.train`.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from attar.demo.digits import digits
from attar.errors import InputError
from attar.files import write_atomic

if TYPE_CHECKING:
    from attar.progress import Progress
    from attar.run import Result

CALIBRATION_IMAGES = 100


def run_demo(
    directory: str | Path | None = None, *, progress: Progress | None = None, threads: int = 1
) -> Result:
    """Compress the digits network with the defaults and prove the result on images that it has not seen.

    100 training images without their labels calibrate; top-1 accuracy is measured before and after on the
    597 test images.

    Args:
        directory: where to write, `attar-demo` of the current folder by default; made if it is not there.
            Written are `digits.onnx` (the network as trained), `digits-int8.onnx` (the result), `report.json`
            and `report.html`, which is `report.txt` where jinja2 (the extra `report`) is not installed.
        progress: shown what runs; nothing by default.
        threads: of the runtime, for the accuracy and the latency figures.

    Raises:
        InputError: the directory cannot be made or written.
    """
    import attar

    directory = Path("attar-demo" if directory is None else directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {directory}: {error.strerror}") from error

    source = directory / "digits.onnx"
    write_atomic(source, files("attar.demo").joinpath("digits.onnx").read_bytes())

    unlabelled, _ = digits("train")
    result = attar.compress(
        source,
        calibration=unlabelled[:CALIBRATION_IMAGES],
        evaluate=(digits("test"), "top1"),
        threads=threads,
        progress=progress,
    )
    result.save(directory / "digits-int8.onnx")
    readable = "report.txt" if find_spec("jinja2") is None else "report.html"
    for name in (readable, "report.json"):
        result.report.save(directory / name)
    return result
