"""Networks of other frameworks, trained further by attar and returned to where they came from.

    python tests/benchmarks/crossframework.py resnet8    Keras: int8 with training, to Keras and .tflite
    python tests/benchmarks/crossframework.py fashion    MXNet: 70 % of the parameters removed, to MXNet

Every step goes through `attar.compress` and `attar.convert`. What comes out is judged in its own framework
(Keras, TensorFlow's interpreter, MXNet), on the development images; calibration and training take the
training images, without their labels. Seed and time are printed. Models and data come from ATTAR_DATA
(default: shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar import graph

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
sys.path.insert(0, str(DATA))
Array = np.ndarray[Any, np.dtype[Any]]


def top1(run: Callable[[Array], Any], images: Array, labels: Array, batch: int = 250) -> float:
    """Share of right first answers, in percent."""
    parts = [np.asarray(run(images[i : i + batch])) for i in range(0, len(images), batch)]
    scores = np.concatenate([p.reshape(-1, p.shape[-1]) for p in parts])
    return 100 * float((scores.argmax(1) == labels).mean())


def on_runtime(model: Any) -> Callable[[Array], Any]:
    from attar.runtime import OnnxRuntime

    session = OnnxRuntime().open(model)
    return lambda x: session(x)[0]


def parameters(model: Any) -> tuple[int, int]:
    """Floats of a model, and how many of them are not zero."""
    arrays = [graph.const_array(v) for v in model.graph.initializers.values()]
    floats = [a for a in arrays if a is not None and a.dtype == np.float32]
    return sum(a.size for a in floats), sum(int(np.count_nonzero(a)) for a in floats)


def told(report: Any) -> None:
    print(f"  {report.verdict}: {report.headline}", flush=True)
    for step in report.steps:
        print(f"  {step.name}: {step.refused or '; '.join(step.changes)}", flush=True)


# -- Keras -> int8, trained -> Keras and .tflite -------------------------------------------------------------


def in_interpreter(path: Path) -> Callable[[Array], Array]:
    """A function of real numbers that runs a `.tflite` file of integers, one sample a call."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(x: Array) -> Array:
        if taken["dtype"] is not np.float32:
            scale, zero = taken["quantization"]
            ends = np.iinfo(taken["dtype"])
            x = np.clip(np.rint(x / scale) + zero, ends.min, ends.max).astype(taken["dtype"])
        made = []
        for row in x:
            interpreter.set_tensor(taken["index"], row[None])
            interpreter.invoke()
            made.append(interpreter.get_tensor(given["index"])[0])
        return np.stack(made)  # of int8 scores, the order is that of the codes

    return run


def resnet8(epochs: float, seed: int, threads: int, folder: Path) -> None:
    import keras
    import load

    from attar_quantize import Static
    from attar_train import Qat

    images = load.cifar10("train")[0].astype(np.float32)
    test, labels = load.cifar10("dev")
    test = test.astype(np.float32)
    source = keras.models.load_model(DATA / "cifar_models" / "resnet8_cifar10jpeg.h5", compile=False)
    print(f"resnet8, in Keras: {top1(lambda a: source(a, training=False), test, labels):.2f}", flush=True)
    step = Qat(epochs=epochs, batch_size=128, flip=True, crop=2, temperature=2.0, threads=threads)
    for name, recipe in (("quantized", [Static()]), ("quantized and trained", [Static(), step])):
        start = time.perf_counter()
        result = attar.compress(
            source, recipe, calibration=images[:512], training=images, target="microcontroller", seed=seed
        )
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        told(result.report)
        model = result.model
        twin = attar.convert(model, "tensorflow", folder / "small.keras", inputs=images[:4]).files[0]
        back = keras.models.load_model(twin, compile=False)
        lite = attar.convert(model, "tflite", folder / "small.tflite", inputs=images[:4]).files[0]
        print(
            f"  ONNX Runtime {top1(on_runtime(model), test, labels):.2f}, "
            f"Keras {top1(lambda a, m=back: m(a, training=False), test, labels):.2f}, "
            f".tflite in the interpreter {top1(in_interpreter(lite), test, labels):.2f}, "
            f"{lite.stat().st_size} bytes",
            flush=True,
        )


# -- MXNet, pruned and distilled, back to MXNet --------------------------------------------------------------


def in_mxnet(prefix: Path) -> Callable[[Array], Array]:
    """What MXNet itself computes from a symbol file and its parameters."""
    np.bool = np.bool_  # MXNet 1.9.1 asks for the alias that NumPy 1.24 took away
    import mxnet as mx

    net = mx.gluon.nn.SymbolBlock.imports(
        f"{prefix}-symbol.json", ["data"], f"{prefix}-0000.params", ctx=mx.cpu()
    )
    return lambda x: net(mx.nd.array(x)).asnumpy()


def fashion(epochs: float, seed: int, threads: int, folder: Path) -> None:
    import load

    from attar_prune import Weights
    from attar_train import Distill

    def read(part: str) -> tuple[Array, Array]:
        x, y = load.grey("fashion_mnist", part)
        return ((x.astype(np.float32) / 255 - 0.13) / 0.31)[:, None].astype(np.float32), y

    images, _ = read("train")
    test, labels = read("dev")
    path = DATA / "mxnet_models" / "fashion-mnist-symbol.json"
    before = attar.load(path)
    whole = parameters(before)[0]
    print(f"fashion: {whole} parameters, {top1(on_runtime(before), test, labels):.2f}", flush=True)
    recipe = [
        Weights(ratio=0.703),
        Distill(
            epochs=epochs, batch_size=256, lr=1.5e-3, temperature=1.0, crop=1, ema=0.998, weight_decay=0.0,
            threads=threads,
        ),
    ]  # fmt: skip
    start = time.perf_counter()
    result = attar.compress(path, recipe, calibration=images[:12_000], training=images, seed=seed)
    print(f"pruned and distilled: {time.perf_counter() - start:.0f} s", flush=True)
    told(result.report)
    attar.convert(result.model, "mxnet", folder / "small-symbol.json", inputs=images[:4])
    size, left = parameters(result.model)
    print(
        f"  {left} parameters that are not zero of {size} ({1 - left / whole:.1%} removed), "
        f"in MXNet {top1(in_mxnet(folder / 'small'), test, labels):.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["fashion", "resnet8"])
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where files stay; thrown away unless given")
    given = parser.parse_args()
    known = {"resnet8": (resnet8, 0.15), "fashion": (fashion, 16)}
    for part in given.parts:
        if part not in known:
            parser.error(f"no part {part!r}; parts: {', '.join(known)}")
        run, usual = known[part]
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as thrown:
            folder = given.folder or Path(thrown)
            folder.mkdir(parents=True, exist_ok=True)
            run(given.epochs or usual, given.seed, given.threads, folder)
        print(f"{part}: seed {given.seed}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
