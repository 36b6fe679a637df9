"""8-bit and 4-bit quantization of trained networks: points lost, beside onnxruntime.quantization.

    python tests/benchmarks/quantization.py mobilenet     MobileNetV1 0.75: W8A8, W4A8 and their kin
    python tests/benchmarks/quantization.py few [--sets]  W4A8 over several calibration sets
    python tests/benchmarks/quantization.py frameworks    small networks, W8A8, each from its own framework
    python tests/benchmarks/quantization.py encoder       all-MiniLM-L6-v2: Spearman's correlation on STS-B

Models and data come from ATTAR_DATA (default: shared/data beside the repository). Calibration samples are
unlabelled and none of those that are judged; `--images` says how many there are (128). Losses are in points
of the metric, on the same samples; "same" is the share of arg-maxes that stay, "SQNR" that of the outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import spine
from rounding import applied

import attar
from attar.calibration import as_data
from attar.context import Context
from attar.passes import Pass
from attar.registry import default_registry
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_fuse import Fuse
from attar_quantize import Outliers, Smooth, Static

Array = np.ndarray[Any, Any]
RUNTIME = OnnxRuntime()
KEYWORDS = ["silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
# Images of the calibration pool that one set of `few` draws.
_SEEDS = 6


def outputs(model: Any, x: Array) -> Array:
    """Of the first output, [N, classes]."""
    session = RUNTIME.open(model)
    parts = [session(x[i : i + 25])[0] for i in range(0, len(x), 25)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts])


def compare(name: str, found: Array, reference: Array, labels: Array, seconds: float | None = None) -> None:
    """Print what was lost."""
    hits, right = found.argmax(1) == labels, reference.argmax(1) == labels
    # What is added to all classes alike changes no decision.
    noise, signal = (a - a.mean(1, keepdims=True) for a in (found - reference, reference))
    sqnr = 10 * np.log10(np.mean(signal**2) / max(np.mean(noise**2), 1e-30))
    same = 100 * (found.argmax(1) == reference.argmax(1)).mean()
    lost = 100 * (right.mean() - hits.mean())
    took = "" if seconds is None else f"  {seconds:6.1f} s"
    print(
        f"  {name:30} {100 * right.mean():6.2f} -> {100 * hits.mean():6.2f}, lost {lost:5.2f}, "
        f"same {same:5.1f}, SQNR {sqnr:5.2f} dB{took}",
        flush=True,
    )


def _mobilenet() -> tuple[Any, Array, Array, Array]:
    """MobileNetV1 0.75, the pool of calibration images, the images that are judged and their labels."""
    import load

    network = spine.mobilenet_v1()
    model = attar.load(network.model, inputs=network.example)
    pool = load.jpegs(load.P("imagenet", "sample1k_dev.npz"))[0]
    images, labels = load.imagenet("dev")
    return model, _prepared(pool), _prepared(images), labels


def _prepared(images: Array) -> Array:
    import load

    return np.ascontiguousarray(load.mobilenet_v1(images).transpose(0, 3, 1, 2))


def _compressed(model: Any, steps: list[Pass] | None, x: Array) -> tuple[Any, float]:
    """The result and its seconds, everything included."""
    name, start = input_specs(model)[0].name, time.perf_counter()
    result = attar.compress(model, steps, calibration=[{name: x[i : i + 1]} for i in range(len(x))])
    return result.runnable, time.perf_counter() - start


def mobilenet(count: int, sets: int) -> None:
    """The settings, and the rival's time for the first."""
    del sets
    model, pool, x, labels = _mobilenet()
    reference = outputs(model, x)
    calibration = pool[:count]
    print(f"MobileNetV1 0.75, {count} calibration images")
    settings: dict[str, list[Pass] | None] = {
        "W8A8 per channel, defaults": None,
        "W8A8 per tensor": [Fuse(), Static(granularity="per_tensor")],
        "W4A8": [Fuse(), Static(weight_bits=4)],
        "powers of two": [Fuse(), Static(power_of_two=True)],
    }
    for name, steps in settings.items():
        small, seconds = _compressed(model, steps, calibration)
        compare(name, outputs(small, x), reference, labels, seconds)
    with tempfile.TemporaryDirectory() as folder:
        for name, per_channel in (("ONNX Runtime, per channel", True), ("ONNX Runtime, per tensor", False)):
            path, seconds = _rival(model, calibration, Path(folder), per_channel)
            compare(name, outputs(path, x), reference, labels, seconds)


def _rival(model: Any, x: Array, folder: Path, per_channel: bool) -> tuple[Path, float]:
    """onnxruntime.quantization with its defaults but for the granularity, preprocessing included."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = input_specs(model)[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter({name: x[i : i + 1]} for i in range(len(x)))

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self._samples, None)

    attar.save(model, folder / "fp32.onnx")
    start = time.perf_counter()
    quant_pre_process(str(folder / "fp32.onnx"), str(folder / "prepared.onnx"))
    out = folder / f"rival{per_channel}.onnx"
    quantize_static(
        str(folder / "prepared.onnx"),
        str(out),
        Reader(),
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    return out, time.perf_counter() - start


def few(count: int, sets: int) -> None:
    """W4A8 over calibration sets drawn at random from the pool."""
    model, pool, x, labels = _mobilenet()
    reference = outputs(model, x)
    print(f"MobileNetV1 0.75, W4A8, {sets} sets of {count} calibration images")
    for seed in range(sets):
        drawn = np.random.default_rng(seed).choice(len(pool), count, replace=False)
        small, seconds = _compressed(model, [Fuse(), Static(weight_bits=4)], pool[drawn])
        compare(f"set {seed}", outputs(small, x), reference, labels, seconds)


def frameworks(count: int, sets: int) -> None:
    """Each network with defaults, which leave in float what is quicker so, and with integers everywhere."""
    del sets
    registry = default_registry()
    print(f"W8A8, {count} calibration samples")
    for name, make in NETWORKS.items():
        source, example, calibration, x, labels = make(count)
        model = attar.load(source, inputs=example)
        reference = outputs(model, x)
        small, seconds = _compressed(model, None, calibration)
        compare(name, outputs(small, x), reference, labels, seconds)
        # The passes alone: `attar.compress` would give the float network back where that is quicker.
        data = as_data(list(np.split(calibration, len(calibration))), input_specs(model))
        ctx = Context(registry, registry.get_target("cpu-vnni"), RUNTIME, data)
        small, seconds = applied(model, [Fuse(), Static(plan="everything")], ctx)
        compare("  integers everywhere", outputs(small, x), reference, labels, seconds)


Case = tuple[Any, Any, Array, Array, Array]


def _resnet20(count: int) -> Case:
    import load
    import torch
    import torch_models

    net = torch_models.CifarResNet(3)
    net.load_state_dict(
        torch.load(spine.DATA / "cifar_models" / "resnet20_cifar10jpeg.pt", weights_only=True)
    )
    seen = load.resnet20(load.cifar10("train")[0][:count]).astype(np.float32)
    images, labels = load.cifar10("dev")
    return net.eval(), torch.from_numpy(seen[:1]), seen, load.resnet20(images).astype(np.float32), labels


def _resnet8(file: str) -> Callable[[int], Case]:
    def make(count: int) -> Case:
        import load

        seen = load.cifar10("train")[0][:count].astype(np.float32)
        images, labels = load.cifar10("dev")
        return spine.DATA / file, None, seen, images.astype(np.float32), labels

    return make


def _grey(name: str, file: str, prepare: Callable[[Array], Array]) -> Callable[[int], Case]:
    def make(count: int) -> Case:
        import load

        seen, (images, labels) = load.grey(name, "train")[0][:count], load.grey(name, "dev")
        ready = [prepare(a.astype(np.float32))[:, None].astype(np.float32) for a in (seen, images)]
        return spine.DATA / "mxnet_models" / file, None, ready[0], ready[1], labels

    return make


def _keywords(count: int) -> Case:
    import load

    features, labels = load.kws("dev")
    x = features["mlperf"].astype(np.float32)
    # There are no others: every fifth calibrates, the rest is judged.
    seen = np.arange(len(x)) % 5 == 0
    return spine.DATA / "kws" / "keras_saved_model", None, x[seen][:count], x[~seen], labels[~seen]


NETWORKS: Mapping[str, Callable[[int], Case]] = {
    "ResNet-20 (PyTorch)": _resnet20,
    "ResNet-8 (Keras)": _resnet8("cifar_models/resnet8_cifar10jpeg.h5"),
    "ResNet-8, original (Keras)": _resnet8("mlperf_tiny/resnet8_cifar10_original.h5"),
    "Fashion-MNIST (MXNet)": _grey(
        "fashion_mnist", "fashion-mnist-symbol.json", lambda v: (v / 255 - 0.13) / 0.31
    ),
    "MNIST (MXNet)": _grey("mnist", "mnist-symbol.json", lambda v: v / 255),
    "keywords (SavedModel)": _keywords,
}


def encoder(count: int, sets: int) -> None:
    """Spearman's correlation of the sentence encoder by setting, and its time relative to fp32."""
    from encoder import Encoder

    del sets
    task = Encoder(rows=600, texts=count)
    model, samples = task.model(), [task.tokens([text]) for text in task.texts]
    held = [task.tokens([row[0]]) for row in task._rows[:100]]
    session = RUNTIME.open(model, threads=1)
    score, reference = task.score(session), [session.run(f)[0] for f in held]
    print(f"all-MiniLM-L6-v2, {count} sentences, fp32 {100 * score:.2f}")
    settings: dict[str, list[Pass] | None] = {
        "defaults": None,
        "hessian": [Fuse(), Static(rounding="hessian")],
        "smooth": [Fuse(), Smooth(), Static()],
        "outliers": [Fuse(), Outliers(), Static()],
    }
    for name, steps in settings.items():
        start = time.perf_counter()
        try:
            result = attar.compress(model, steps, calibration=samples)
        except attar.AttarError as error:
            print(f"  {name:12} {error}")
            continue
        seconds = time.perf_counter() - start
        small = RUNTIME.open(result.runnable, threads=1)
        found = [small.run(f)[0] for f in held]
        noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, reference, strict=True))
        sqnr = 10 * np.log10(sum(float((r**2).sum()) for r in reference) / noise)
        print(
            f"  {name:12} lost {100 * (score - task.score(small)):6.3f}, SQNR {sqnr:.2f} dB, "
            f"time {result.report.speed.ratio:.3f}, {seconds:.1f} s",
            flush=True,
        )


PARTS: Mapping[str, Callable[[int, int], None]] = {
    "mobilenet": mobilenet,
    "few": few,
    "frameworks": frameworks,
    "encoder": encoder,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all if not given")
    parser.add_argument("--images", type=int, default=128, help="calibration samples")
    parser.add_argument("--sets", type=int, default=_SEEDS, help="calibration sets of `few`")
    options = parser.parse_args()
    if not spine.DATA.is_dir():
        parser.error(f"no data in {spine.DATA}; set ATTAR_DATA")
    sys.path.insert(0, str(spine.DATA))
    for part in options.parts or PARTS:
        PARTS[part](options.images, options.sets)


if __name__ == "__main__":
    main()
