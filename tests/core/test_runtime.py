"""Sessions: what fits runs, and what does not is one clear InputError."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from spine_models import cnn, images, mlp

from attar import graph
from attar.errors import InputError
from attar.runtime import OnnxRuntime, Runtime, Session
from attar.testing.build import INT64, Net

RNG = np.random.default_rng(0)


def two_ports() -> ir.Model:
    """(x + 1, n * 2): inputs of two types, two outputs."""
    net = Net("ports")
    x, n = net.input("image", "N", 3), net.input("count", "N", dtype=INT64)
    one, two = net.const(np.ones(1, np.float32)), net.const(np.array([2], np.int64))
    return net.model(shifted=net.op("Add", x, one), doubled=net.op("Mul", n, two))


def test_a_session_takes_dicts_tuples_and_names_and_answers_in_graph_order() -> None:
    session = OnnxRuntime().open(two_ports())
    assert [str(s) for s in session.inputs] == ["image: float32[N, 3]", "count: int64[N]"]
    assert session.outputs == ("shifted", "doubled")
    image, count = RNG.standard_normal((2, 3)).astype(np.float32), np.array([3, 4])
    for results in (
        session.run({"count": count, "image": image}),
        session(image, count),
        session((image, count)),
        session([image, count]),
        session({"image": image}, count=count),
        session(image=image, count=count),
    ):
        np.testing.assert_array_equal(results[0], image + 1)
        np.testing.assert_array_equal(results[1], [6, 8])


def test_an_array_of_a_type_that_fits_is_cast() -> None:
    session = OnnxRuntime().open(mlp())
    x = RNG.standard_normal((2, 16))
    np.testing.assert_array_equal(session(x)[0], session(x.astype(np.float32))[0])


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        ({"imag": 0, "count": 0}, r"no input 'imag'[\s\S]*did you mean 'image'\?"),
        ({"zzz": 0}, r"no input 'zzz'[\s\S]*known: count, image"),
        ({"image": np.ones((1, 3), "f")}, r"'count' is missing[\s\S]*count: int64\[N\]"),
        (
            {"image": np.ones((1, 3), "f"), "count": np.ones(1, "f")},
            r"'count' is float32, expected count: int64",
        ),
        ({"image": np.ones((1, 3), complex), "count": np.ones(1, "i8")}, r"'image' is complex128, expected"),
        ({"image": np.array([["a"] * 3]), "count": np.ones(1, "i8")}, r"'image' is <U1, expected"),
        ({"image": np.ones((1, 4), "f"), "count": np.ones(1, "i8")}, r"'image' has shape \[1, 4\], expected"),
        ({"image": np.ones(3, "f"), "count": np.ones(1, "i8")}, r"'image' has shape \[3\], expected"),
        ({"image": np.float32(1), "count": np.ones(1, "i8")}, r"'image' has shape \[\], expected"),
    ],
)
def test_what_does_not_fit_is_named_before_the_runtime_sees_it(feeds: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        OnnxRuntime().open(two_ports()).run(feeds)


def test_too_many_arrays() -> None:
    with pytest.raises(InputError, match=r"2 inputs given, the model has 1"):
        OnnxRuntime().open(mlp())(np.ones((1, 16), "f"), np.ones((1, 16), "f"))


@pytest.mark.parametrize("data", [b"", b"not a protobuf", b"\x08\x0a" * 50])
def test_broken_bytes(data: bytes) -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load the model: ."):
        OnnxRuntime().open(data)


def test_truncated_file_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(graph.to_bytes(cnn())[:500])
    with pytest.raises(InputError, match=r"cannot load the model"):
        OnnxRuntime().open(path)
    with pytest.raises(InputError, match=r"no such file: .*gone.onnx"):
        OnnxRuntime().open(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match=r"no such file"):
        OnnxRuntime().open(tmp_path)


def test_an_unknown_provider_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"'CPUExecutionProvidr'[\s\S]*did you mean 'CPUExecutionProvider'"):
        OnnxRuntime("CPUExecutionProvidr").open(mlp())


def test_config_entries_reach_the_runtime() -> None:
    x = np.ones((1, 16), "f")
    quiet = OnnxRuntime(config={"session.intra_op.allow_spinning": "0"}).open(mlp())
    np.testing.assert_array_equal(quiet(x)[0], OnnxRuntime().open(mlp())(x)[0])


def test_a_model_that_fails_while_running_says_why() -> None:
    net = Net("reshape")
    x = net.input("x", "N", 3)
    model = net.model(y=net.op("Reshape", x, net.ints([2, 2])))
    with pytest.raises(InputError, match=r"the model failed while running: .*[Rr]eshape") as caught:
        OnnxRuntime().open(model)(np.ones((1, 3), "f"))
    assert caught.value.__cause__ is not None
    assert not re.search(r"/onnxruntime/core", caught.value.message[:40])


def test_optimization_changes_the_graph_but_not_the_answer() -> None:
    model, x = cnn(), images(1)[0]
    plain, quick = OnnxRuntime().open(model, optimize=False), OnnxRuntime().open(model)
    np.testing.assert_allclose(plain(x)[0], quick(x)[0], rtol=0, atol=3e-6)  # of up to 1.4 in float32
    with pytest.raises(InputError, match=r"open it with optimize=True"):
        plain.kernels()
    assert len(quick.kernels()) != 0


def test_opening_leaves_the_model_as_it_was() -> None:
    model = cnn()
    before = graph.to_bytes(model)
    session = OnnxRuntime().open(model)
    session.profile_of({"x": images(1)[0]})
    assert graph.to_bytes(model) == before


def test_a_path_to_external_data_runs(tmp_path: Path) -> None:
    model, x = cnn(), images(1)[0]
    graph.save(model, tmp_path / "m.onnx", external_data=True)
    session = OnnxRuntime().open(tmp_path / "m.onnx")
    np.testing.assert_array_equal(session(x)[0], OnnxRuntime().open(model)(x)[0])
    assert session.kernels()


def test_profiling_needs_to_be_asked_for_and_ends() -> None:
    feeds = {"x": images(1)[0]}
    with pytest.raises(InputError, match=r"profile=True"):
        OnnxRuntime().open(cnn()).profile(feeds)
    session = OnnxRuntime().open(cnn(), profile=True)
    assert session.profile(feeds, runs=3)
    with pytest.raises(InputError, match=r"profile it once"):
        session.profile(feeds)
    with pytest.raises(InputError, match=r"'y' is missing|'x' is missing"):
        OnnxRuntime().open(cnn(), profile=True).profile({})


def test_threads_are_taken() -> None:
    x = images(1)[0]
    for threads in (0, 2):
        np.testing.assert_allclose(
            OnnxRuntime().open(cnn(), threads=threads)(x)[0],
            OnnxRuntime().open(cnn())(x)[0],
            rtol=0,
            atol=3e-6,
        )


def test_the_bases_say_what_they_cannot_do() -> None:
    with pytest.raises(InputError, match=r"cannot open"):
        Runtime().open(mlp())
    with pytest.raises(InputError, match=r"cannot run"):
        Session().run({})
    with pytest.raises(InputError, match=r"version"):
        Runtime().version()
    assert Session().kernels() == Session().profile_of({}) == ()
