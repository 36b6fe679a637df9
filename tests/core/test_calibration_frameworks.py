"""Loaders and tensors of the frameworks. Each runs in a process of its own, as they do not get on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import numpy as np
from attar.calibration import as_data
from attar.errors import InputError
from attar.specs import TensorSpec
VEC = (TensorSpec("x", np.dtype(np.float32), ("N", 4)),)
PAIR = (TensorSpec("a", np.dtype(np.float32), ("N", 4)), TensorSpec("b", np.dtype(np.int64), ("N",)))
x = np.arange(40, dtype=np.float32).reshape(10, 4)
y = np.arange(10)
def check(data, sizes=None):
    for _ in range(2):
        assert np.array_equal(np.concatenate([b.inputs["x"] for b in data]), x)
        assert np.array_equal(np.concatenate([b.labels for b in data]), y)
        assert all(type(b.inputs["x"]) is np.ndarray and b.inputs["x"].dtype == np.float32 for b in data)
        assert sizes is None or [b.size for b in data] == sizes, [b.size for b in data]
"""


def run_in(framework: str, code: str) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code) + "\nprint('passed')"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("passed\n")


def test_torch():
    run_in(
        "torch",
        """
        import torch
        from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
        tx, ty = torch.from_numpy(x), torch.from_numpy(y)
        pairs = TensorDataset(tx, ty)
        check(as_data(DataLoader(pairs, batch_size=4), VEC), [4, 4, 2])
        check(as_data(DataLoader(pairs, batch_size=4, num_workers=1), VEC), [4, 4, 2])
        check(as_data(DataLoader(pairs, batch_size=None), VEC), [10])
        check(as_data(iter(DataLoader(pairs, batch_size=4)), VEC), [4, 4, 2])
        check(as_data(pairs, VEC), [10])
        assert as_data(pairs, VEC).count() == 10
        check(as_data((tx, ty), VEC, batch_size=8), [8, 2])
        check(as_data({"x": tx, "labels": ty}, VEC), [10])
        check(as_data((tx.requires_grad_(), ty), VEC), [10])

        class Stream(IterableDataset):
            def __iter__(self):
                return iter(zip(tx.detach(), ty))
        check(as_data(DataLoader(Stream(), batch_size=5), VEC), [5, 5])
        check(as_data(Stream(), VEC), [10])

        class Mapped(Dataset):  # no IndexError at the end, dict items as in the data sets of transformers
            def __len__(self): return 10
            def __getitem__(self, i):
                return {"x": tx[i % 10].detach(), "labels": int(ty[i % 10]), "text": "hello"}
        check(as_data(Mapped(), VEC), [10])
        check(as_data(DataLoader(Mapped(), batch_size=3), VEC), [3, 3, 3, 1])

        half = as_data([tx.detach().to(torch.bfloat16)], VEC).first().inputs["x"]
        assert np.array_equal(half, x)  # integers below 256 are exact in bfloat16
        small = tx.detach() / 64
        eighth = as_data([small.to(torch.float8_e4m3fn)], VEC).first().inputs["x"]
        assert np.array_equal(eighth, small.to(torch.float8_e4m3fn).float().numpy())
        quantized = torch.quantize_per_tensor(tx.detach(), 0.5, 3, torch.quint8)
        assert np.array_equal(as_data([quantized], VEC).first().inputs["x"], x)
        try:
            as_data([torch.ones(2, 4, device="meta")], VEC).first()
        except InputError as error:
            assert "batch 0, input 'x'" in str(error)
        else:
            raise AssertionError("a meta tensor has no values")
        labels = as_data([(tx.detach(), ty.to(torch.bfloat16))], VEC).first().labels
        assert labels.dtype == np.float32
        shared = as_data(tx.detach(), VEC).first().inputs["x"]
        assert np.shares_memory(shared, x)
        batch = as_data(DataLoader(TensorDataset(tx.detach(), ty, ty), batch_size=5), PAIR).first()
        assert batch.inputs["b"].tolist() == batch.labels.tolist() == [0, 1, 2, 3, 4]
        try:
            as_data([torch.ones(2, 4).to_sparse()], VEC).first()
        except InputError as error:
            assert "torch.Tensor" in str(error)
        else:
            raise AssertionError("a sparse tensor is no array")
        """,
    )


def test_tensorflow():
    run_in(
        "tensorflow",
        """
        import tensorflow as tf
        pairs = tf.data.Dataset.from_tensor_slices((x, y))
        check(as_data(pairs.batch(4), VEC), [4, 4, 2])
        check(as_data(pairs, VEC), [10])
        check(as_data(pairs.batch(4).as_numpy_iterator(), VEC), [4, 4, 2])
        check(as_data(tf.data.Dataset.from_tensor_slices({"x": x, "label": y}).batch(3), VEC), [3, 3, 3, 1])
        nested = tf.data.Dataset.from_tensor_slices(((x, y), y)).batch(5)
        assert as_data(nested, PAIR).first().labels.tolist() == [0, 1, 2, 3, 4]
        check(as_data((tf.constant(x), tf.constant(y)), VEC, batch_size=8), [8, 2])
        assert np.array_equal(as_data([tf.cast(x, tf.bfloat16)], VEC).first().inputs["x"], x)
        try:
            as_data(pairs.repeat(), VEC)
        except InputError as error:
            assert "repeats for ever" in str(error) and "limit" in str(error)
        else:
            raise AssertionError("endless data without a limit")
        assert [b.size for b in as_data(pairs.batch(10).repeat(), VEC, limit=25)] == [10, 10, 5]

        import keras
        class Batches(keras.utils.PyDataset):
            def __len__(self): return 3
            def __getitem__(self, i): return x[i * 4 : i * 4 + 4], y[i * 4 : i * 4 + 4]
        check(as_data(Batches(), VEC), [4, 4, 2])
        """,
    )


def test_mxnet():
    run_in(
        "mxnet",
        """
        np.bool = np.bool_
        import mxnet as mx
        from mxnet import gluon
        pairs = gluon.data.ArrayDataset(mx.nd.array(x), mx.nd.array(y, dtype="int64"))
        check(as_data(gluon.data.DataLoader(pairs, batch_size=4), VEC), [4, 4, 2])
        check(as_data(pairs, VEC), [10])
        check(as_data((mx.nd.array(x), mx.nd.array(y)), VEC, batch_size=8), [8, 2])
        check(as_data([(mx.nd.array(x), y)], VEC), [10])
        check(as_data(mx.io.NDArrayIter(x, y, batch_size=4), VEC), [4, 4, 2])  # the last batch is padded
        """,
    )


def test_calibration_imports_no_framework():
    code = """
    import sys
    as_data([x], VEC).first()
    heavy = {"torch", "tensorflow", "mxnet", "keras", "PIL", "onnxruntime"} & set(sys.modules)
    assert not heavy, heavy
    """
    run_in("numpy", code)
