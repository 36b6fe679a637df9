"""Runs `.tflite` files in TensorFlow's interpreter."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attar.errors import ConversionError, InputError
from attar_tensorflow.tflite.file import Graph

Array = np.ndarray[Any, np.dtype[Any]]


def available() -> bool:
    """Whether TensorFlow is installed; does not import it."""
    return importlib.util.find_spec("tensorflow") is not None


def may_delegate(graph: Graph) -> bool:
    """Whether XNNPACK computes `graph` rightly: see `Interpreter`."""
    codes = {t.index for t in graph.tensors if t.quantization is not None and t.dtype.kind in "iu"}
    return not any(op.kind == "BATCH_MATMUL" and codes & {*op.inputs} for op in graph.operators)


class Interpreter:
    """One file in TensorFlow's interpreter as it comes, with XNNPACK.

    XNNPACK rounds codes as ONNX Runtime does (round half to even of one float product), so the two agree to
    the bit on most
    networks; the interpreter's own kernels, like those for microcontrollers, round twice in fixed point.

    Args:
        data: the file.
        inputs, outputs: names to give its inputs and outputs, in the file's order.
        delegate: use XNNPACK. Not for BATCH_MATMUL on codes, where it forgets the zero point of the second
        operand
            (TensorFlow 2.21).
    """

    def __init__(
        self, data: bytes, inputs: Sequence[str], outputs: Sequence[str], *, delegate: bool = True
    ) -> None:
        self._data, self._inputs, self._outputs, self._delegate = (
            data,
            tuple(inputs),
            tuple(outputs),
            delegate,
        )
        self._engine: Any = None
        self._lock = threading.Lock()  # it holds one set of tensors

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in order. State that the file keeps between runs is reset before each.

        Raises:
            InputError: TensorFlow is missing, an input is, or the interpreter refuses the file.
        """
        if missing := [n for n in self._inputs if n not in feeds]:
            raise InputError(f"the input {missing[0]!r} is missing")
        with self._lock:
            try:
                return self._run(feeds)
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    f"TensorFlow's interpreter refuses the file: {str(error).strip()[:300]}"
                ) from error

    def check(self) -> None:
        """Have the interpreter look at the whole file, so that nothing is refused later.

        Raises:
            ConversionError: it refuses it.
        """
        with self._lock:
            try:
                self._engine = _open(self._data, self._delegate)
                self._engine.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                self._engine = None
                raise ConversionError(
                    f"TensorFlow's interpreter refuses the file: {str(error).strip()[:300]}"
                ) from error

    def _run(self, feeds: Mapping[str, Array]) -> list[Array]:
        if self._engine is None:
            self._engine = _open(self._data, self._delegate)
            self._engine.allocate_tensors()
        engine = self._engine
        # Its own order of inputs and outputs is that of the file.
        changed = False
        details = engine.get_input_details()
        arrays = [
            np.ascontiguousarray(feeds[n]) if np.ndim(feeds[n]) else np.asarray(feeds[n])
            for n in self._inputs
        ]
        for detail, array in zip(details, arrays, strict=True):
            if tuple(detail["shape"]) != array.shape:
                engine.resize_tensor_input(detail["index"], array.shape)
                changed = True
        if changed:
            engine.allocate_tensors()
        for detail, array in zip(details, arrays, strict=True):
            engine.set_tensor(detail["index"], array)
        engine.reset_all_variables()
        engine.invoke()
        return [np.array(engine.get_tensor(d["index"])) for d in engine.get_output_details()]


def _open(data: bytes, delegate: bool) -> Any:
    if not available():
        raise InputError("running a .tflite file needs TensorFlow", hint="pip install 'attar[tensorflow]'")
    import os
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # TensorFlow announces that the interpreter moves to a package of its own
        import tensorflow as tf

        kinds = tf.lite.experimental.OpResolverType
        kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return tf.lite.Interpreter(model_content=data, experimental_op_resolver_type=kind, num_threads=1)
