"""attar with its defaults against fp32 ONNX Runtime and against onnxruntime.quantization: size, speed,
accuracy.

`python tests/benchmarks/spine.py [NETWORK ...]`. Models and data come from ATTAR_DATA (default: shared/data
beside the repository). Every network is compressed by one call with defaults, once with unlabelled data
alone and once with the metric given as well (`evaluate=`), which then may fall by 0.01 at most; the rivals
are the best static QDQ settings of onnxruntime.quantization on the same calibration samples. All are timed
in turns in one process, one thread, one sample; ratios are medians of neighbours' quotients, below 1 is
faster than fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar.runtime import OnnxRuntime
from attar.specs import input_specs

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
Feeds = dict[str, np.ndarray]


@dataclass
class Network:
    """What one row of the table needs.

    Attributes:
        model: anything `attar.load` reads.
        example: example inputs for `attar.load`, None where the source has a signature.
        calibration: samples, batch first.
        test: labelled batches, or None where only agreement with fp32 counts.
        score: (session, test) -> the metric, higher is better.
    """

    model: Any
    example: Any
    calibration: list[Feeds]
    score: Callable[[Any], float] | None
    metric: str


def _top1(images: np.ndarray, labels: np.ndarray, name: str) -> Callable[[Any], float]:
    def score(session: Any) -> float:
        hits = 0
        for i in range(0, len(images), 25):
            output = session.run({name: images[i : i + 25]})[0]
            hits += int((output.reshape(len(output), -1).argmax(1) == labels[i : i + 25]).sum())
        return hits / len(images)

    return score


def _imagenet(prepare: Callable[[np.ndarray], np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Calibration images (none of the test's), test images and labels."""
    import load

    calibration = load.jpegs(str(DATA / "imagenet" / "sample1k_dev.npz"))[0][:128]
    images, labels = load.imagenet("dev")
    return [prepare(calibration[i : i + 1]) for i in range(len(calibration))], prepare(images), labels


def mobilenet_v1() -> Network:
    import load
    import torch
    import torch_models

    net = torch_models.MobileNetV1()
    path = DATA / "mobilenet_v1_075" / "mobilenet_v1_075_224.pt"
    net.load_state_dict(torch.load(path, weights_only=True))
    samples, images, labels = _imagenet(
        lambda x: np.ascontiguousarray(load.mobilenet_v1(x).transpose(0, 3, 1, 2))
    )
    example = torch.from_numpy(samples[0])
    return Network(net.eval(), example, [{"x": s} for s in samples], _top1(images, labels, "x"), "top-1")


def _onnx_imagenet(file: str, name: str, prepare: Callable[[np.ndarray], np.ndarray]) -> Network:
    samples, images, labels = _imagenet(prepare)
    return Network(DATA / file, None, [{name: s} for s in samples], _top1(images, labels, name), "top-1")


def squeezenet() -> Network:
    import load

    return _onnx_imagenet("squeezenet11/squeezenet11_fp32.onnx", "data_0", load.squeezenet)


def mobilenet_v2() -> Network:
    import load

    file = "mobilenet_v2_dequant/mobilenet_v2_1.0_224_fp32_dequant.onnx"
    return _onnx_imagenet(file, "input", load.mobilenet_v2)


def _cifar(depth: int, weights: str) -> Network:
    import load
    import torch
    import torch_models

    torch.manual_seed(0)
    net = torch_models.CifarResNet(depth)
    if weights:
        net.load_state_dict(torch.load(DATA / "cifar_models" / weights, weights_only=True))
    calibration = load.resnet20(load.cifar10("train")[0][:256]).astype(np.float32)
    images, labels = load.cifar10("dev")
    score = _top1(load.resnet20(images[:2000]).astype(np.float32), labels[:2000], "x") if weights else None
    samples = [{"x": calibration[i : i + 1]} for i in range(len(calibration))]
    return Network(net.eval(), torch.from_numpy(calibration[:1]), samples, score, "top-1")


def resnet20() -> Network:
    return _cifar(3, "resnet20_cifar10jpeg.pt")


def resnet56() -> Network:
    return _cifar(9, "")


def minilm() -> Network:
    from encoder import Encoder

    task = Encoder(rows=600, texts=128)
    samples = [task.tokens([t]) for t in task.texts]
    return Network(task.net(), task.tokens(task.texts[:2], "pt"), samples, task.score, "Spearman")


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "mobilenet_v1_075": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet11": squeezenet,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "minilm": minilm,
}


def rivals(fp32: Path, network: Network, folder: Path) -> dict[str, Path]:
    """The file quantized by onnxruntime.quantization in its settings that are worth comparing with."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter(network.calibration[:64])

        def get_next(self) -> Feeds | None:
            return next(self._samples, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    u8, s8 = QuantType.QUInt8, QuantType.QInt8
    minmax, entropy = CalibrationMethod.MinMax, CalibrationMethod.Entropy
    settings = {
        "ort u8s8 channel minmax": {"activation_type": u8, "per_channel": True, "calibrate_method": minmax},
        "ort u8s8 channel entropy": {"activation_type": u8, "per_channel": True, "calibrate_method": entropy},
        "ort s8s8 default": {"activation_type": s8, "per_channel": False, "calibrate_method": minmax},
    }
    made = {}
    for name, options in settings.items():
        path = folder / f"{name}.onnx"
        try:
            quantize(
                str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, weight_type=s8,
                reduce_range=False, **options,
            )  # fmt: skip
            made[name] = path
        except Exception as error:  # a rival that fails is a result, too
            print(f"  {name} failed: {type(error).__name__}: {str(error)[:120]}", file=sys.stderr)
    return made


def ratios(sessions: Mapping[str, Any], feeds: Feeds, rounds: int) -> dict[str, tuple[float, float]]:
    """Name -> (median ms, median ratio to the first), all in turns; the order turns round every time."""
    names = list(sessions)
    for name in names:
        for _ in range(5):
            sessions[name].run(feeds)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            start = time.perf_counter()
            sessions[name].run(feeds)
            times[name].append((time.perf_counter() - start) * 1000)
    base = np.array(times[names[0]])
    return {n: (float(np.median(t)), float(np.median(np.array(t) / base))) for n, t in times.items()}


def measure(name: str, rounds: int, with_rivals: bool) -> list[dict[str, Any]]:
    """One row each for fp32, attar and the rivals."""
    network = NETWORKS[name]()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model = attar.load(network.model, inputs=network.example)
        feeds_name = [s.name for s in input_specs(model)]
        started = time.perf_counter()
        result = attar.compress(model, calibration=network.calibration)
        seconds = time.perf_counter() - started
        result.save(folder / "attar.onnx")
        attar.save(model, folder / "fp32.onnx")
        files = {"fp32": folder / "fp32.onnx", "attar": folder / "attar.onnx"}
        if network.score is not None:
            files["attar, metric given"] = folder / "judged.onnx"
            attar.compress(model, calibration=network.calibration, evaluate=network.score).save(
                files["attar, metric given"]
            )
        if with_rivals:
            files |= rivals(folder / "fp32.onnx", network, folder)
        sessions = {n: OnnxRuntime().open(path, threads=1) for n, path in files.items()}
        assert set(feeds_name) == set(network.calibration[0])
        timed = ratios(sessions, network.calibration[0], rounds)
        base = files["fp32"].stat().st_size
        reference = [sessions["fp32"].run(f)[0] for f in network.calibration[:64]]
        rows = []
        for label, session in sessions.items():
            kernels = [k for k in session.kernels() if k.compute]
            same = [
                (r.argmax(-1) == session.run(f)[0].argmax(-1)).mean()
                for f, r in zip(network.calibration, reference, strict=False)
            ]
            rows.append(
                {
                    "network": name,
                    "form": label,
                    "size": files[label].stat().st_size / base,
                    "ms": timed[label][0],
                    "time": timed[label][1],
                    "integer": sum(k.kind == "integer" for k in kernels),
                    "compute": len(kernels),
                    "metric": network.metric,
                    "score": None if network.score is None else network.score(session),
                    "agreement": float(np.mean(same)),
                    "seconds": seconds if label == "attar" else None,
                    "verdict": result.report.verdict if label == "attar" else None,
                }
            )
        return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("networks", nargs="*", help=f"which: {', '.join(NETWORKS)}; all if not given")
    parser.add_argument("--rounds", type=int, default=60, help="timed rounds (default 60)")
    parser.add_argument("--no-rivals", action="store_true", help="leave onnxruntime.quantization out")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if not DATA.is_dir():
        parser.error(f"no data in {DATA}; set ATTAR_DATA")
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}")
    sys.path.insert(0, str(DATA))
    rows: list[dict[str, Any]] = []
    print(
        f"{'network':18}{'form':26}{'size':>7}{'ms':>9}{'time':>7}{'int/compute':>13}{'score':>9}{'agree':>8}"
    )
    for name in options.networks or NETWORKS:
        for row in measure(name, options.rounds, not options.no_rivals):
            rows.append(row)
            score = "-" if row["score"] is None else f"{row['score']:.4f}"
            print(
                f"{row['network']:18}{row['form']:26}{row['size']:7.3f}{row['ms']:9.3f}{row['time']:7.3f}"
                f"{row['integer']:>9}/{row['compute']:<3}{score:>9}{row['agreement']:8.3f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
