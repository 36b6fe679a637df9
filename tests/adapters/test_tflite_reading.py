"""`.tflite` files in: every operator against TensorFlow's interpreter, damage, and trained models."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_functions import convert, functions, sample

import attar_tensorflow
from attar import graph
from attar.errors import AttarError, ConversionError, InputError
from attar.registry import Registry
from attar.runtime import OnnxRuntime
from attar_tensorflow.tflite import schema
from attar_tensorflow.tflite.adapter import TFLiteAdapter
from attar_tensorflow.tflite.codes import encode
from attar_tensorflow.tflite.file import parse
from attar_tensorflow.tflite.reading import lift
from attar_tensorflow.tflite.table import LIFTINGS

FUNCTIONS = functions()
ADAPTER = TFLiteAdapter()
SOME = ["conv_same", "depthwise", "conv_transpose", "residual", "concat", "global_pool", "dense", "attention"]
# Codes are moved unchanged from one scale to another, which is an error of TensorFlow's converter.
REFUSED_INT8 = {"one_hot"}
# Computed on real numbers between two roundings in one of the two, all on codes in the other.
FLOAT_DETOURS = {"roots", "rounding"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry.discover()
    if "tflite" not in found.adapters:
        found.register(attar_tensorflow, name="tensorflow-for-tests")
    return found


def outputs(data: bytes, shape: tuple[int, ...], registry: Registry) -> tuple[list, list]:
    """What the interpreter and ONNX Runtime give for the same input."""
    loaded = ADAPTER.load(data, registry=registry)
    main = parse(data, "it").graphs[0]
    feeds = {main.input_names[0]: encode(sample(shape), main.tensors[main.inputs[0]])}
    assert loaded.reference is not None
    return list(loaded.reference(feeds)), list(OnnxRuntime().open(loaded.model).run(feeds))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_float_operator_computes_what_the_interpreter_does(name: str, registry: Registry) -> None:
    function, shape = FUNCTIONS[name]
    theirs, ours = outputs(convert(function, shape), shape, registry)
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        reach = max(float(np.abs(a.astype(np.float64)).max(initial=0)), 1e-9)
        assert np.abs(a.astype(np.float64) - b).max(initial=0) <= 1e-5 * reach


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operator_on_codes_differs_by_a_step_on_few_elements(name: str, registry: Registry) -> None:
    function, shape = FUNCTIONS[name]
    data = convert(function, shape, "int8")
    if name in REFUSED_INT8:
        with pytest.raises(ConversionError, match="ONE_HOT"):
            outputs(data, shape, registry)
        return
    for a, b in zip(*outputs(data, shape, registry), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        gap = np.abs(a.astype(int) - b.astype(int))
        # Functions by table and float detours round otherwise at each of several steps.
        assert gap.max(initial=0) <= 2
        assert (gap > 0).mean() <= (0.25 if name in FLOAT_DETOURS else 0.06)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(("how", "limit"), [("float16", 1e-5), ("dynamic", 1e-5), ("int16", None)])
def test_other_kinds_of_quantization(name: str, how: str, limit: float | None, registry: Registry) -> None:
    function, shape = FUNCTIONS[name]
    for a, b in zip(*outputs(convert(function, shape, how), shape, registry), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        gap = np.abs(a.astype(np.float64) - b)
        assert gap.max() <= (4 if limit is None else limit * np.abs(a).max())


def test_transposes_stand_at_the_border_only(registry: Registry) -> None:
    import tensorflow as tf

    kernel = sample((3, 3, 4, 4))

    def net(x):  # type: ignore[no-untyped-def]
        for _ in range(3):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")) + x
            x = tf.nn.max_pool2d(x, 2, 1, "SAME")
        return tf.nn.softmax(tf.reduce_mean(tf.concat([x, x * 2], 3), [1, 2]))

    model = ADAPTER.load(convert(net, (2, 9, 8, 4)), registry=registry).model
    kinds = [n.op_type for n in graph.all_nodes(model)]
    assert kinds.count("Transpose") == 1
    assert "GlobalAveragePool" in kinds


def test_the_schema_is_that_of_tensorflow() -> None:
    from tensorflow.lite.python import schema_py_generated as theirs

    def numbers(kind: type) -> dict[int, str]:
        return {v: k for k, v in vars(kind).items() if isinstance(v, int)}

    assert dict(enumerate(schema.OPERATORS)) == {
        k: v for k, v in numbers(theirs.BuiltinOperator).items() if k < len(schema.OPERATORS)
    }
    assert dict(enumerate(schema.TYPES)).items() <= numbers(theirs.TensorType).items()
    options = numbers(theirs.BuiltinOptions)
    assert dict(enumerate(schema.UNIONS["options"])).items() <= options.items()
    for table in schema._TABLES:
        for field in schema.fields(table):
            method = "".join(part[:1].upper() + part[1:] for part in field.name.split("_"))
            assert hasattr(getattr(theirs, table), method), (table, field.name)


@pytest.fixture(scope="module")
def small() -> bytes:
    function, shape = FUNCTIONS["residual"]
    return convert(function, shape, "int8")


def test_damaged_files_are_refused_by_name(small: bytes, registry: Registry) -> None:
    chance = random.Random(0)
    for number in range(150):
        damaged = bytearray(small)
        if number % 3 == 0:
            del damaged[chance.randrange(len(damaged)) :]
        else:
            for _ in range(chance.choice([1, 2, 8])):
                damaged[chance.randrange(len(damaged))] = chance.choice([0, 127, 128, 255])
        with contextlib.suppress(AttarError):  # anything else fails the test
            ADAPTER.load(bytes(damaged), registry=registry)


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(16), b"\x10\0\0\0TFL3" + b"\xff" * 40])
def test_what_is_no_file_is_said_so(content: bytes, tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.tflite"):
        ADAPTER.load(path, registry=registry)


def test_all_unknown_operators_are_listed(small: bytes) -> None:
    table = {kind: f for kind, f in LIFTINGS.items() if kind not in ("CONV_2D", "ADD")}
    with pytest.raises(ConversionError, match=r"small\.tflite") as caught:
        lift(parse(small, "small.tflite"), table, "small.tflite")
    assert set(caught.value.missing) == {"CONV_2D", "ADD"}


def test_float_interface(small: bytes, registry: Registry) -> None:
    loaded = ADAPTER.load(small, registry=registry, float_io=True)
    feeds = {loaded.model.graph.inputs[0].name: sample(FUNCTIONS["residual"][1])}
    (theirs,), (ours,) = loaded.reference(feeds), OnnxRuntime().open(loaded.model).run(feeds)
    assert theirs.dtype == ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(InputError, match="float_io"):
        ADAPTER.load(small, registry=registry, flaot_io=True)


def test_the_trained_keyword_spotter_keeps_its_accuracy(attar_data: Path, registry: Registry) -> None:
    stored = np.load(attar_data / "kws" / "feat_dev.npz")
    loaded = ADAPTER.load(attar_data / "kws" / "reference_int8.tflite", registry=registry)
    session = OnnxRuntime().open(loaded.model)
    features = stored["mlperf_mfcc_i8"].reshape(-1, 49, 10, 1).astype(np.int8)
    ours = np.concatenate([session.run({"input_1": x[None]})[0] for x in features])
    theirs = np.concatenate([loaded.reference({"input_1": x[None]})[0] for x in features[:200]])
    assert (ours.argmax(1) == stored["y"]).mean() >= 0.91
    assert (ours[:200].argmax(1) == theirs.argmax(1)).mean() >= 0.99
