"""What calibration costs: its time against bare forward passes over the same data, and its memory.

`python tests/benchmarks/calibration.py [--samples 64 256 1024]`. MobileNetV1 of ATTAR_DATA (default:
shared/data beside the repository) at 224x224. Time is the processor time of `Context.statistics` over all
observed values divided by that of running the plain model on the same batches, the two in turns; memory is
the peak resident size of a fresh process that collects, above that of the process once the model is open.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attar import graph

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


class _Asked(Exception):  # noqa: N818  it carries what was asked, and is no error
    """Stops a pass at the moment when it asks for statistics."""


def model_and_values() -> tuple[Any, dict[str, int | None]]:
    """The fused network, and what `quantize.static` asks to know of its values."""
    import torch
    import torch_models

    import attar
    from attar.calibration import as_data
    from attar.context import Context
    from attar.registry import default_registry
    from attar.runtime import OnnxRuntime
    from attar.specs import input_specs
    from attar_quantize import Static

    class Asking(Context):
        def statistics(self, model: Any, wanted: Any) -> Any:
            raise _Asked(dict(wanted))

    net = torch_models.MobileNetV1()
    path = DATA / "mobilenet_v1_075" / "mobilenet_v1_075_224.pt"
    net.load_state_dict(torch.load(path, weights_only=True))
    loaded = attar.load(net.eval(), inputs=torch.zeros(1, 3, 224, 224), verify=False)
    fused = attar.compress(loaded, "fuse.inference").model
    registry = default_registry()
    data, feeds = as_data(Images(8), input_specs(fused)), {"x": next(batches(1, 1))}
    ctx = Asking(registry, registry.get_target("cpu"), OnnxRuntime(), data, feeds=feeds)
    try:
        Static().apply(attar.load(fused), ctx)
    except _Asked as asked:
        return fused, asked.args[0]
    raise SystemExit("quantize.static asked for no statistics")


def batches(samples: int, size: int = 8) -> Iterator[np.ndarray]:
    """Random images, made one batch at a time; the figures do not depend on what they show."""
    rng = np.random.default_rng(0)
    for _ in range(0, samples, size):
        yield rng.standard_normal((size, 3, 224, 224), dtype=np.float32)


class Images:
    """The batches as a source that can be read again."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[np.ndarray]:
        return batches(self.samples)


def times(samples: int, rounds: int) -> dict[str, Any]:
    """Median of the quotients of processor time, statistics over plain forward passes."""
    from attar.calibration import as_data
    from attar.feeds import pieces
    from attar.runtime import OnnxRuntime
    from attar.specs import input_specs
    from attar.statistics import collect

    model, wanted = model_and_values()
    specs = input_specs(model)
    data, runtime = as_data(Images(samples), specs), OnnxRuntime()
    session = runtime.open(model, threads=1)

    def forward() -> None:
        for batch in data:
            for piece in pieces(batch.inputs, specs):
                session.run(piece)

    def gather() -> None:
        collect(model, wanted, data, runtime, threads=1)

    quotients = []
    for i in range(rounds):
        spent = {}
        for name, work in [("forward", forward), ("gather", gather)][:: 1 if i % 2 else -1]:
            start = time.process_time()
            work()
            spent[name] = time.process_time() - start
        quotients.append(spent["gather"] / spent["forward"])
    return {
        "samples": samples,
        "values": len(wanted),
        "ratio": statistics.median(quotients),
        "all": quotients,
    }


def _peak_mb() -> float:
    """Peak resident size of this program in MB. `ru_maxrss` would begin with that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(samples: int, folder: Path) -> dict[str, Any]:
    """Peak resident bytes above the open model, of this process."""
    import attar
    from attar.calibration import as_data
    from attar.runtime import OnnxRuntime
    from attar.specs import input_specs
    from attar.statistics import collect

    # From files, so that the peak is not one that the framework left behind.
    model, wanted = attar.load(folder / "model.onnx"), json.loads((folder / "wanted.json").read_text())
    runtime = OnnxRuntime()
    session = runtime.open(model, threads=1)
    session.run({"x": next(batches(8))})
    before = _peak_mb()
    collect(model, wanted, as_data(Images(samples), input_specs(model)), runtime, threads=1)
    return {"samples": samples, "peak_mb": _peak_mb() - before}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 256, 1024], help="for the memory")
    parser.add_argument("--timed", type=int, default=64, help="samples of the timing (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the timing (default 5)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not DATA.is_dir():
        parser.error(f"no data in {DATA}; set ATTAR_DATA")
    sys.path.insert(0, str(DATA))
    if options.memory_of is not None:
        print(json.dumps(memory(options.memory_of, options.folder)))
        return
    found = {"time": times(options.timed, options.rounds), "memory": []}
    print(
        f"time over forward passes: {found['time']['ratio']:.2f} ({found['time']['values']} values)",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        model, wanted = model_and_values()
        graph.save(model, Path(folder) / "model.onnx")
        (Path(folder) / "wanted.json").write_text(json.dumps(wanted))
        for samples in options.samples:
            command = [sys.executable, __file__, "--memory-of", str(samples), "--folder", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found["memory"].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{samples:6} samples: {found['memory'][-1]['peak_mb']:8.1f} MB above the model", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
