"""The LSTM over a sequence, in float.

TFLite keeps the state between runs until it is reset; here every run begins with the state of the file, which
is zero.
Its gates are input, forget, cell, output; ONNX wants input, output, forget, cell.
"""

from __future__ import annotations

import numpy as np

from attar_tensorflow.tflite.liftop import Op

_ORDER = (0, 3, 1, 2)


def unidirectional_sequence_lstm(op: Op) -> None:
    """Inputs: x, 4 input weights, 4 recurrent weights, 3 peepholes, 4 biases, projection and its bias, 2
    states."""
    if any(op.has(i) for i in (*range(9, 12), 16, 17, *range(20, 24))):
        raise op.refuse("it has peepholes, a projection or layer normalisation")
    if op.activation() != "TANH" or op.option("diagonal_recurrent_tensors") or not op.has(1):
        raise op.refuse("it is not the common form of an LSTM")
    if op.tensor(1).dtype.kind != "f" or op.tensor(0).dtype.kind != "f":
        raise op.refuse("it is quantized")
    if op.option("proj_clip"):
        raise op.refuse("it clips a projection")
    cell_clip = float(op.option("cell_clip"))
    if cell_clip:
        raise op.refuse("it clips its cells")  # ONNX clips what goes into the activations instead
    w = np.concatenate([op.need(1 + g, "a weight") for g in _ORDER])[None].astype(np.float32)
    r = np.concatenate([op.need(5 + g, "a weight") for g in _ORDER])[None].astype(np.float32)
    units = r.shape[-1]
    bias = [op.need(12 + g, "a bias") if op.has(12 + g) else np.zeros(units) for g in _ORDER]
    b = np.concatenate([*bias, np.zeros(4 * units)])[None].astype(np.float32)
    x = op.real(0)
    if not op.option("time_major"):
        x = op.emit("Transpose", [x], perm=[1, 0, 2])
    names = [
        op.constant(a, f"{op.label}/{n}") for a, n in ((w, "kernel"), (r, "recurrent_kernel"), (b, "bias"))
    ]
    every, *_ = op.emits("LSTM", [x, *names], 3, hidden_size=units)
    value = op.emit("Squeeze", [every, np.asarray([1])])
    op.note("the state of an LSTM begins at zero in every run; TFLite keeps it until it is reset")
    op.give_plain(value if op.option("time_major") else op.emit("Transpose", [value], perm=[1, 0, 2]))


LIFTINGS = {"UNIDIRECTIONAL_SEQUENCE_LSTM": unidirectional_sequence_lstm}
