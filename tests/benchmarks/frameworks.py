"""Real trained models of every framework: read, turned into every other, and compressed by one recipe.

    python tests/benchmarks/frameworks.py files       every trained file, read and evaluated on ONNX Runtime
    python tests/benchmarks/frameworks.py trip        Keras -> IR -> torch -> IR -> MXNet -> IR -> Keras
    python tests/benchmarks/frameworks.py recipe      the same MobileNet from three frameworks, one recipe
    python tests/benchmarks/frameworks.py speed       reading against each framework's own exporter, writing

`--count` limits the labelled samples. Models and data are looked for in ATTAR_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_fuse import Fuse
from attar_prune import Channels
from attar_quantize import Static

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
sys.path.insert(0, str(DATA))
KEYWORDS = ["silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]


def nchw(images: Any) -> Any:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def predictions(run: Callable[[Any], Any], x: Any, batch: int = 50) -> Any:
    """Outputs [N, classes] of `run` over batches."""
    parts = [np.asarray(run(x[i : i + batch])) for i in range(0, len(x), batch)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts])


def top1(outputs: Any, labels: Any) -> str:
    return f"{100 * float((outputs.argmax(1) == labels).mean()):.1f}"


def on_runtime(model: Any) -> Callable[[Any], Any]:
    session = OnnxRuntime().open(model, threads=2)
    return lambda x: session(x)[0]


def files(count: int) -> None:
    import load

    images, labels = (a[:count] for a in load.imagenet("dev"))
    small, kinds = (a[:count] for a in load.cifar10("dev"))
    words, said = load.kws("dev")
    words12, said12 = load.kws("dev", KEYWORDS)
    v1, fashion, mnist = (
        load.mobilenet_v1(images),
        load.grey("fashion_mnist", "dev"),
        load.grey("mnist", "dev"),
    )
    grey = {"fashion": lambda v: (v / 255 - 0.13) / 0.31, "mnist": lambda v: v / 255}
    as_grey = {
        n: (grey[n](v[:count].astype("f"))[:, None].astype("f"), y[:count])
        for n, (v, y) in (("fashion", fashion), ("mnist", mnist))
    }
    mlperf = (words["mlperf"].astype("f")[:count], said[:count])
    frozen = (words12["mlkws490"].astype("f")[:count], said12[:count])
    cifar = (small.astype("f"), kinds)
    cases: list[tuple[str, str, Any, Any, int]] = [
        ("mobilenet_v1_075/mobilenet_v1_075_224.keras", "70.8", v1, labels, 50),
        ("mobilenet_v1_075/mobilenet_v1_075_224-symbol.json", "70.8", nchw(v1), labels, 50),
        ("cifar_models/resnet8_cifar10jpeg.h5", "83.4", *cifar, 250),
        ("mlperf_tiny/resnet8_cifar10_original.h5", "75.8", *cifar, 250),
        ("mxnet_models/fashion-mnist-symbol.json", "91.54", *as_grey["fashion"], 250),
        ("mxnet_models/mnist-symbol.json", "99.12", *as_grey["mnist"], 250),
        ("kws/keras_saved_model", "93.2", *mlperf, 250),
        ("kws/tf_frozen/DS_CNN_S.pb", "88.8", *frozen, 250),
        ("kws/tf_frozen/DS_CNN_L.pb", "89.8", *frozen, 250),
        ("kws/tf_frozen/LSTM_L.pb", "86.2", *frozen, 1),
        ("mobilenet_v2_dequant/mobilenet_v2_1_0_224_quant.tflite", "73.4", images, labels, 50),
        ("kws/reference_int8.tflite", "", *mlperf, 250),
    ]
    for name, listed, x, y, batch in cases:
        start = time.perf_counter()
        try:
            model = attar.load(DATA / name)
        except Exception as error:
            print(f"{name}: FAILED {type(error).__name__}: {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        spec = input_specs(model)[0]
        fixed = spec.shape is not None and isinstance(spec.shape[0], int)
        run, quantize, single = (
            on_runtime(model),
            in_type_of(model, DATA / name),
            spec.shape[0] if fixed else batch,
        )
        got = predictions(run, quantize(x), single)
        first = int(got.shape[1] == 1001)  # some count a class for the background
        share = float((got.argmax(1) - first == y).mean())
        print(
            f"{name}: top-1 {100 * share:.2f} (listed {listed or '-'}), read in {seconds:.1f} s", flush=True
        )


def in_type_of(model: Any, path: Path) -> Callable[[Any], Any]:
    """Real numbers as the model's input wants them: integer inputs carry the file's scale and zero point."""
    spec = input_specs(model)[0]
    if spec.dtype.kind == "f":
        sizes = spec.shape[1:]
        whole = all(isinstance(d, int) for d in sizes)
        return lambda x: x.astype(spec.dtype).reshape(-1, *(sizes if whole else x.shape[1:]))
    if spec.dtype == np.uint8 and "mobilenet" in path.name:
        return lambda x: x.astype(np.uint8)
    import tensorflow as tf

    scale, zero = tf.lite.Interpreter(str(path)).get_input_details()[0]["quantization"]
    info = np.iinfo(spec.dtype)
    return lambda x: np.clip(np.rint(x / scale) + zero, info.min, info.max).astype(spec.dtype)


def trip(count: int) -> None:
    import keras
    import load

    images, labels = (a[:count] for a in load.imagenet("dev"))
    small, kinds = (a[:count] for a in load.cifar10("dev"))
    for name, x, y in (
        ("mobilenet_v1_075/mobilenet_v1_075_224.keras", load.mobilenet_v1(images), labels),
        ("cifar_models/resnet8_cifar10jpeg.h5", small.astype("f"), kinds),
    ):
        source = keras.models.load_model(DATA / name, compile=False)
        example = x[:2]
        model, native = attar.load(source), None
        for framework in ("torch", "mxnet", "tensorflow"):
            native = attar.export(model, framework, inputs=example)
            model = attar.load(native, inputs=example)
            print(f"  {name}: through {framework}", flush=True)
        wanted = predictions(lambda a, m=source: m(a, training=False), x)
        got = predictions(lambda a, m=native: m(a, training=False), x)
        same = float((wanted.argmax(1) == got.argmax(1)).mean())
        gap = float(np.abs(wanted - got).max() / np.abs(wanted).max())
        top1 = float((got.argmax(1) == y).mean())
        print(f"{name}: agreement {100 * same:.2f} %, relative difference {gap:.1e}, top-1 {100 * top1:.2f}")


def recipe(count: int) -> None:
    import load
    import torch
    import torch_models

    images, labels = (a[:count] for a in load.imagenet("dev"))
    x = load.mobilenet_v1(images)
    calibration = load.mobilenet_v1(load.jpegs(load.P("imagenet", "sample1k_dev.npz"))[0][:100])
    net = torch_models.MobileNetV1()
    net.load_state_dict(torch.load(DATA / "mobilenet_v1_075/mobilenet_v1_075_224.pt", weights_only=True))
    net = torch.nn.Sequential(net, torch.nn.Softmax(1))  # as the other two files have it
    base = DATA / "mobilenet_v1_075/mobilenet_v1_075_224"
    for name, source, channels_last in (
        ("torch", net.eval(), False),
        ("tensorflow", f"{base}.keras", True),
        ("mxnet", f"{base}-symbol.json", False),
    ):
        as_input = (lambda a: a) if channels_last else nchw
        model = attar.load(source, inputs=as_input(calibration[:2]))
        before = predictions(on_runtime(model), as_input(x))
        for what, steps in (("int8", None), ("fuse, prune, int8", [Fuse(), Channels(ratio=0.1), Static()])):
            result = attar.compress(model, steps, calibration=as_input(calibration))
            report = result.report
            got = predictions(on_runtime(result.runnable), as_input(x))
            kinds = sorted((k.kind for k in report.after.kernels), key=str)
            print(
                f"{name}, {what}: {report.before.bytes} -> {report.after.bytes} bytes, "
                f"{report.after.nodes} nodes, kernels { {k: kinds.count(k) for k in dict.fromkeys(kinds)} }, "
                f"time {report.speed.ratio:.3f}, "
                f"top-1 {top1(before, labels)} -> {top1(got, labels)}",
                flush=True,
            )


def speed(count: int) -> None:
    """Seconds to read the MobileNet (checked against the source, and not) and of the framework's own ONNX
    exporter, in turns; seconds to write it. The least of three each, after one that does not count."""
    import tempfile

    import keras
    import load
    import torch
    import torch_models

    x = load.mobilenet_v1(load.imagenet("dev")[0][:1])
    net = torch_models.MobileNetV1().eval()
    base = str(DATA / "mobilenet_v1_075/mobilenet_v1_075_224")
    layers, image = keras.models.load_model(f"{base}.keras", compile=False), torch.from_numpy(nchw(x))

    batch = ({0: torch.export.Dim.DYNAMIC},)  # as attar reads it

    def own_mxnet(path: str) -> None:
        np.bool = np.bool_  # mxnet 1.9.1 was written for an older numpy
        import mxnet.onnx

        mxnet.onnx.export_model(
            f"{base}-symbol.json", f"{base}-0000.params", [(1, 3, 224, 224)], np.float32, path
        )

    sources: dict[str, tuple[Any, Any, Callable[[str], Any]]] = {
        "torch": (
            net,
            nchw(x),
            lambda path: torch.onnx.export(
                net, (image,), path, dynamo=True, verbose=False, dynamic_shapes=batch
            ),
        ),
        "tensorflow": (layers, x, lambda path: layers.export(path, format="onnx", verbose=False)),
        "mxnet": (f"{base}-symbol.json", nchw(x), own_mxnet),
    }
    for framework, (source, example, own) in sources.items():
        seconds: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "own.onnx")
            work: dict[str, Callable[[], Any]] = {
                "read": lambda s=source, e=example: attar.load(s, inputs=e, verify=False),
                "read and checked": lambda s=source, e=example: attar.load(s, inputs=e),
                "its own exporter": lambda o=own, p=path: o(p),
            }
            model = attar.load(source, inputs=example)
            work["written and checked"] = lambda m=model, f=framework, e=example: attar.export(m, f, inputs=e)
            for _ in range(4):
                for name, what in work.items():
                    start = time.perf_counter()
                    try:
                        what()
                        seconds.setdefault(name, []).append(time.perf_counter() - start)
                    except Exception as error:
                        print(f"  {framework}, {name}: {type(error).__name__}: {str(error)[:200]}")
        figures = ", ".join(f"{name} {min(times[1:]):.2f} s" for name, times in seconds.items() if times[1:])
        print(f"{framework}, {len(model.graph)} nodes: {figures}", flush=True)


COMMANDS = {"speed": speed, "files": files, "trip": trip, "recipe": recipe}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=COMMANDS, nargs="+")
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    for what in arguments.what:
        COMMANDS[what](arguments.count)


if __name__ == "__main__":
    main()
