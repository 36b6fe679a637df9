"""`attar compress` and `attar demo`: what reaches the API, where the result goes, what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import attar
import attar.registry
from attar.cli import cli
from attar.cli.compress import parse_step
from attar.cli.data import preprocess
from attar.errors import InputError, RecipeError
from attar.hooks import hookimpl
from attar.passes import Pass
from attar.registry import Registry
from attar.report import Report, Snapshot


class Static(Pass, name="quantize.static"):
    bits: int = 8
    per_channel: bool = True
    label: str = ""
    layers: tuple[str, ...] = ()


class Inference(Pass, name="fuse.inference"):
    pass


class Kernels(Pass, name="fuse.kernels"):
    pass


class Data(Pass, name="probe.data"):
    needs = ("calibration",)


class Scored(Pass, name="probe.scored"):
    needs = ("evaluate",)


class Plugin:
    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return [Static, Inference, Kernels, Data, Scored]


class FakeResult:
    def __init__(self, verdict: Any = "accepted") -> None:
        shot = Snapshot(100, 25, 3)
        self.report = Report("m.onnx", "onnx", "cpu", "onnxruntime", verdict, "half the size", shot, shot)

    def save(self, path: Path) -> None:
        Path(path).write_bytes(b"result")


class Api:
    """Stands for `attar.compress` and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.verdict = "accepted"

    def __call__(self, *args: Any, **kwargs: Any) -> FakeResult:
        self.calls.append((args, kwargs))
        return FakeResult(self.verdict)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    registry = Registry()
    registry.register(Plugin(), name="probe")
    monkeypatch.setattr(attar.registry, "default_registry", lambda: registry)
    fake = Api()
    monkeypatch.setitem(vars(attar), "compress", fake)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"model")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["compress", "m.onnx", *arguments], prog_name="attar")


@pytest.mark.usefixtures("folder")
def test_everything_given_reaches_the_api(api: Api) -> None:
    Path("pre.toml").write_text('size = 160\nmean = [0.1, 0.2, 0.3]\nchannels = "BGR"\n')
    result = run(
        *("-o", "out.onnx", "--pass", "fuse.inference", "--pass", "quantize.static:bits=4,per_channel=false"),
        *(
            "--calibration",
            "calib",
            "--preprocess",
            "pre.toml",
            "--image-size",
            "96x128",
            "--image-std",
            "1/4",
        ),
        *(
            "--evaluate",
            "top1",
            "--data",
            "test.npz",
            "--max-drop",
            "0.01",
            "--target",
            "arm",
            "--costs",
            "costs.json",
            "--threads",
            "2",
        ),
        *("--seed", "7", "--train", "train.npz"),
    )
    assert result.exit_code == 0, result.output
    [(args, kwargs)] = api.calls
    assert args == ("m.onnx", (Inference(), Static(bits=4, per_channel=False)))
    progress = kwargs.pop("progress")
    assert callable(progress.task)
    assert kwargs == {
        "calibration": "calib",
        "training": "train.npz",
        "preprocess": {"size": (96, 128), "mean": [0.1, 0.2, 0.3], "channels": "BGR", "std": 0.25},
        "evaluate": ("test.npz", "top1"),
        "max_drop": 0.01,
        "target": "arm",
        "costs": Path("costs.json"),
        "threads": 2,
        "seed": 7,
    }
    assert Path("out.onnx").read_bytes() == b"result"
    assert "half the size" in result.stdout
    assert "output: out.onnx" in result.stderr


@pytest.mark.usefixtures("folder")
def test_what_is_not_given_takes_the_defaults(api: Api) -> None:
    assert run("-o", "out.onnx").exit_code == 0
    [(args, kwargs)] = api.calls
    assert args == ("m.onnx", (Inference(), Kernels(), Static()))
    kwargs.pop("progress")
    assert kwargs == {
        **dict.fromkeys(("calibration", "training", "preprocess", "evaluate", "max_drop", "costs")),
        "target": "cpu",
        "threads": 1,
        "seed": 0,
    }


@pytest.mark.usefixtures("folder")
def test_a_recipe_file_and_a_preset(api: Api) -> None:
    Path("recipe.toml").write_text('[[pass]]\nname = "quantize.static"\nbits = 4\n')
    assert run("-o", "out.onnx", "-r", "recipe.toml").exit_code == 0
    assert run("-o", "out.onnx", "--preset", "int8").exit_code == 0
    assert [args[1] for args, _ in api.calls] == [(Static(bits=4),), (Inference(), Kernels(), Static())]


@pytest.mark.usefixtures("folder")
def test_json_is_the_report_and_nothing_else(api: Api) -> None:
    result = run("-o", "out.onnx", "--json", "--report", "r.json", "--report", "r.html", "--report", "r.txt")
    told = json.loads(result.stdout)
    assert told["verdict"] == "accepted"
    assert told["before"]["bytes"] == 100
    assert told["output"] == "out.onnx"
    assert told["reports"] == ["r.json", "r.html", "r.txt"]
    assert json.loads(Path("r.json").read_text())["headline"] == "half the size"
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert Path("r.txt").read_text().startswith("accepted: half the size")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_a_compression_that_does_not_pay_exits_with_3_and_writes_the_original(
    api: Api, json_flag: tuple[str, ...]
) -> None:
    api.verdict = "unchanged"
    result = run("-o", "out.onnx", *json_flag)
    assert result.exit_code == 3
    assert "unchanged" in result.stdout
    assert Path("out.onnx").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Missing option '-o'"),
        (("-o", "m.onnx"), "is the model itself"),
        (("-o", "./../{}/m.onnx"), "is the model itself"),
        (("-o", "o", "--preset", "int8", "--pass", "fuse.inference"), "give one of"),
        (("-o", "o", "--evaluate", "top1"), "--evaluate needs --data"),
        (("-o", "o", "--data", "x.npz"), "--data needs --evaluate"),
        (("-o", "o", "--max-drop", "0.1"), "--max-drop needs --evaluate"),
        (("-o", "o", "--max-drop", "-1"), "--max-drop"),
        (("-o", "o", "--threads", "-1"), "--threads"),
        (("-o", "o", "--image-size", "big"), "'big' is no size"),
        (("-o", "o", "--image-mean", "1,x"), "'1,x' is no number"),
        (("-o", "o", "--image-scale", "1/0"), "'1/0' is no number"),
    ],
)
def test_wrong_usage_does_no_work(api: Api, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    result = run(*(a.format(folder.name) for a in arguments))
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert api.calls == []


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-o", "missing/out.onnx"), "there is no folder missing"),
        (("-o", "sub"), "it is a folder"),
        (("-o", "o", "--report", "missing/r.html"), "there is no folder missing"),
        (("-o", "o", "--preset", "int9"), "did you mean 'int8'"),
        (("-o", "o", "--pass", "quantize.statik"), "did you mean 'quantize.static'"),
        (("-o", "o", "--pass", "quantize.static:bit=4"), "did you mean 'bits'"),
        (("-o", "o", "--pass", "quantize.static:bits=x"), "option 'bits' = 'x' must be int"),
        (("-o", "o", "--pass", "quantize.static:bits"), "'bits' is not option=value"),
        (("-o", "o", "-r", "missing.toml"), "no such file: missing.toml"),
        (
            ("-o", "o", "--pass", "probe.data"),
            "'probe.data' needs calibration data hint: give --calibration PATH",
        ),
        (
            ("-o", "o", "--pass", "probe.scored"),
            "'probe.scored' needs a metric hint: give --evaluate METRIC --data",
        ),
        (("-o", "o", "--preprocess", "missing.toml"), "cannot read missing.toml"),
        (("-o", "o", "--preprocess", "bad.toml"), "bad.toml is no TOML"),
    ],
)
def test_bad_input_is_found_before_the_work(api: Api, arguments: tuple[str, ...], told: str) -> None:
    Path("sub").mkdir()
    Path("bad.toml").write_text("size = = 3")
    result = run(*arguments)
    assert result.exit_code == 1
    assert told in " ".join(result.stderr.split())
    assert api.calls == []
    assert not Path("o").exists()


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("fuse.inference", {}),
        ("quantize.static:", {}),
        ("quantize.static:bits=4", {"bits": 4}),
        ("quantize.static: bits = 4 , per_channel = true", {"bits": 4, "per_channel": True}),
        ("quantize.static:label=4", {"label": "4"}),
        ("quantize.static:label=a b", {"label": "a b"}),
        ('quantize.static:label="a,b=c"', {"label": "a,b=c"}),
        ("quantize.static:layers=['a', 'b,c'],bits=2", {"layers": ["a", "b,c"], "bits": 2}),
        ("unknown.pass:x=minmax,y=1e-3", {"x": "minmax", "y": 0.001}),
        ("unknown.pass:x=a=b", {"x": "a=b"}),
    ],
)
def test_steps_are_read_as_they_are_meant(text: str, table: dict[str, Any]) -> None:
    assert parse_step(text) == {"name": text.partition(":")[0], **table}


def test_an_option_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="'bits' is given twice"):
        parse_step("unknown.pass:bits=4,bits=8")


def test_the_preprocessing_options_are_those_of_the_library(tmp_path: Path) -> None:
    from attar.calibration import ImagePreprocess

    options = preprocess(
        {
            "image_size": (224, 224),
            "image_resize": 256,
            "image_crop": "center",
            "image_interpolation": "bicubic",
            "image_mean": (0.485, 0.456, 0.406),
            "image_std": 0.5,
            "image_scale": 1 / 255,
            "image_layout": "NCHW",
            "image_channels": "RGB",
        }
    )
    assert options is not None
    assert ImagePreprocess(**options).resize == 256
    assert preprocess({"image_size": None}) is None
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(InputError, match="is no TOML"):
        preprocess({"preprocess_file": tmp_path / "latin.toml"})


def test_the_demo_prints_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import attar.demo

    seen = []

    def run_demo(directory: Path, *, progress: Any, threads: int) -> FakeResult:
        seen.append((directory, threads))
        return FakeResult()

    monkeypatch.setattr(attar.demo, "run_demo", run_demo)
    result = CliRunner().invoke(cli, ["demo", "--keep", str(tmp_path), "--threads", "2", "--json"])
    assert seen == [(tmp_path, 2)]
    assert json.loads(result.stdout)["directory"] == str(tmp_path)


@pytest.mark.usefixtures("folder")
def test_a_metric_may_use_the_labels_of_the_calibration_data(api: Api) -> None:
    assert run("-o", "o", "--evaluate", "top1", "--calibration", "c.npz", "--max-drop", "0").exit_code == 0
    [(_, kwargs)] = api.calls
    assert (kwargs["evaluate"], kwargs["max_drop"]) == ("top1", 0.0)


def test_a_real_network_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is faked: the demo's network, quantized by the command, answers as the original does."""
    from importlib.resources import files

    import numpy as np
    import onnxruntime

    from attar.demo.digits import digits

    monkeypatch.chdir(tmp_path)
    original = files("attar.demo").joinpath("digits.onnx").read_bytes()
    Path("m.onnx").write_bytes(original)
    np.savez("calib.npz", image=digits("train")[0][:32])
    result = run("-o", "out.onnx", "--calibration", "calib.npz", "--json", "--report", "r.html")
    told = json.loads(result.stdout)
    # A busy machine may find that it does not pay; the command must then say so, and only then.
    assert (result.exit_code, told["verdict"]) in {(0, "accepted"), (3, "unchanged")}
    assert Path("m.onnx").read_bytes() == original
    images = digits("test")[0][:100]
    before, after = (
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
        for name in ("m.onnx", "out.onnx")
    )
    assert (before.argmax(-1) == after.argmax(-1)).mean() >= 0.97
    assert told["after"]["bytes"] == pytest.approx(Path("out.onnx").stat().st_size, rel=1e-3)
    if told["verdict"] == "accepted":
        assert Path("out.onnx").stat().st_size < 0.4 * len(original)
    assert "m.onnx" in Path("r.html").read_text()
