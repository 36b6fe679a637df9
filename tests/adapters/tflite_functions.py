"""Small TensorFlow functions that together use the operators of `.tflite` files, and their conversion by
TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

IMAGE = (2, 9, 8, 4)
ROWS = (3, 6)
TOKENS = (2, 5, 8)


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def functions() -> dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]]:
    """Name -> (function, shape of its input)."""
    import tensorflow as tf

    kernel, deep = _random(3, 3, 4, 6), _random(3, 2, 4, 2)
    square = _random(8, 8, seed=3)
    dense = {"rows": _random(6, 5), "tokens": _random(8, 7)}
    image: dict[str, Callable[[Any], Any]] = {
        "conv_same": lambda x: tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME") + _random(6)),
        "conv_valid": lambda x: tf.nn.relu6(tf.nn.conv2d(x, kernel, 1, "VALID")),
        "conv_dilated": lambda x: tf.nn.conv2d(x, kernel, 1, "SAME", dilations=2),
        "conv_grouped": lambda x: tf.nn.conv2d(x, _random(3, 3, 2, 6), 1, "SAME"),
        "depthwise": lambda x: tf.nn.depthwise_conv2d(x, deep, [1, 2, 2, 1], "SAME"),
        "conv_transpose": lambda x: tf.nn.conv2d_transpose(x, _random(3, 3, 5, 4), [2, 18, 16, 5], 2, "SAME"),
        "conv_transpose_valid": lambda x: tf.nn.conv2d_transpose(
            x, _random(3, 3, 5, 4), [2, 19, 17, 5], 2, "VALID"
        ),
        "max_pool": lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"),
        "average_pool": lambda x: tf.nn.avg_pool2d(x, 3, 2, "SAME"),
        "global_pool": lambda x: tf.reduce_mean(tf.nn.conv2d(x, kernel, 1, "SAME"), [1, 2]),
        "global_pool_kept": lambda x: tf.reduce_mean(
            tf.nn.conv2d(x, kernel, 1, "SAME"), [1, 2], keepdims=True
        ),
        "residual": lambda x: tf.nn.relu(x + tf.nn.conv2d(x, _random(1, 1, 4, 4), 1, "SAME")),
        "channel_offset": lambda x: (
            tf.nn.conv2d(x, kernel, 1, "SAME") * _random(6, seed=1) - _random(8, 1, seed=2)
        ),
        "concat": lambda x: tf.concat([x, tf.nn.conv2d(x, kernel, 1, "SAME")], 3),
        "split": lambda x: tf.add_n(tf.split(tf.nn.conv2d(x, kernel, 1, "SAME"), 3, axis=3)),
        "split_sizes": lambda x: tf.split(tf.nn.conv2d(x, kernel, 1, "SAME"), [1, 5], axis=3)[1],
        "flatten": lambda x: tf.reshape(tf.nn.conv2d(x, kernel, 2, "SAME"), [2, -1]),
        "pad": lambda x: tf.pad(tf.nn.conv2d(x, kernel, 1, "SAME"), [[0, 0], [1, 2], [0, 1], [0, 0]]),
        "pad_mirrored": lambda x: tf.pad(x, [[0, 0], [1, 2], [2, 1], [0, 0]], mode="REFLECT"),
        "slice": lambda x: tf.nn.conv2d(x, kernel, 1, "SAME")[:, 1:7:2, ::-1, 1:],
        "pick": lambda x: tf.nn.conv2d(x, kernel, 1, "SAME")[:, 2, ..., tf.newaxis],
        "resize_bilinear": lambda x: tf.compat.v1.image.resize_bilinear(x, [13, 20], half_pixel_centers=True),
        "resize_corners": lambda x: tf.compat.v1.image.resize_bilinear(x, [13, 20], align_corners=True),
        "resize_nearest": lambda x: tf.compat.v1.image.resize_nearest_neighbor(
            x, [18, 16], half_pixel_centers=True
        ),
        "resize_old": lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, [13, 20]),
        "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
        "space_to_depth": lambda x: tf.nn.space_to_depth(x[:, :8], 2),
        "batch_to_space": lambda x: tf.batch_to_space(
            tf.space_to_batch(x, [2, 2], [[1, 0], [1, 1]]), [2, 2], [[0, 1], [1, 0]]
        ),
        "lrn": lambda x: tf.nn.local_response_normalization(x, 2, 1.0, 1e-2, 0.6),
        "softmax_channels": lambda x: tf.nn.softmax(tf.nn.conv2d(x, kernel, 1, "SAME")),
        "l2_normalize": lambda x: tf.nn.l2_normalize(tf.nn.conv2d(x, kernel, 1, "SAME"), -1),
        "prelu": lambda x: tf.nn.relu(x) + _random(4) * -tf.nn.relu(-x),
        "arg_max": lambda x: tf.argmax(tf.nn.conv2d(x, kernel, 1, "SAME"), -1),
        "reduce": lambda x: (
            tf.reduce_max(tf.nn.conv2d(x, kernel, 1, "SAME"), 1) - tf.reduce_min(x[..., :1], 1)
        ),
        "transposed": lambda x: tf.transpose(tf.nn.conv2d(x, kernel, 1, "SAME"), [0, 2, 3, 1]),
        "squeezed": lambda x: tf.squeeze(
            tf.nn.conv2d(tf.expand_dims(x[:, 0], 1), _random(1, 3, 4, 6), 1, "SAME"), 1
        ),
        "tiled": lambda x: tf.tile(x, [1, 2, 1, 1]),
        "reversed": lambda x: tf.reverse(tf.nn.conv2d(x, kernel, 1, "SAME"), [2]),
    }
    rows: dict[str, Callable[[Any], Any]] = {
        "dense": lambda x: tf.nn.relu(tf.matmul(x, dense["rows"]) + _random(5)),
        "logistic": tf.sigmoid,
        "tanh": tf.tanh,
        "elu": tf.nn.elu,
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.3),
        "gelu": tf.nn.gelu,
        "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3) * (1 / 6),
        "exponential": lambda x: tf.exp(x) / (1.0 + tf.square(x)),
        "log": lambda x: tf.math.log(tf.abs(x) + 1.0),
        "roots": lambda x: tf.sqrt(tf.abs(x)) + tf.math.rsqrt(tf.abs(x) + 0.5),
        "rounding": lambda x: tf.floor(x * 3) + tf.math.ceil(x * 2) + tf.round(x * 5),
        "waves": lambda x: tf.sin(x) * tf.cos(x),
        "power": lambda x: tf.pow(tf.abs(x), 1.7),
        "extremes": lambda x: tf.minimum(tf.maximum(x, -0.4), _random(6)),
        "squared_difference": lambda x: tf.math.squared_difference(x, _random(6)),
        "floor_div": lambda x: tf.math.floordiv(x, 0.3) + tf.math.floormod(x, 0.7),
        "neg": lambda x: -x,
        "compared": lambda x: tf.cast(tf.logical_and(x > 0, tf.logical_not(x >= 1)), tf.float32),
        "selected": lambda x: tf.where(tf.not_equal(x, 0), x, tf.zeros_like(x)),
        "softmax": lambda x: tf.nn.softmax(x * 2),
        "log_softmax": tf.nn.log_softmax,
        "sums": lambda x: tf.reduce_sum(x, 0) + tf.reduce_prod(x, 0),
        "cumulated": lambda x: tf.cumsum(x, 1, exclusive=True),
        "top_k": lambda x: tf.math.top_k(x, 3),
        "gathered": lambda x: tf.gather(x, [5, 0, 2], axis=1),
        "one_hot": lambda x: tf.one_hot(tf.cast(tf.abs(x) * 3, tf.int32), 4),
        "packed": lambda x: tf.stack(tf.unstack(x, axis=1)[::-1], axis=0),
        "any": lambda x: tf.reduce_any(x > 1, 1),
        "gather_nd": lambda x: tf.gather_nd(x, [[0, 1], [2, 5]]),
        "shaped": lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:1] * 2, [-1]], 0)),
    }
    tokens: dict[str, Callable[[Any], Any]] = {
        "attention": lambda x: tf.matmul(
            tf.nn.softmax(tf.matmul(tf.matmul(x, square), x, transpose_b=True)), x
        ),
        "dense_tokens": lambda x: tf.matmul(x, dense["tokens"]) + _random(7),
        "layer_norm": lambda x: (
            (x - tf.reduce_mean(x, -1, True)) * tf.math.rsqrt(tf.math.reduce_variance(x, -1, True) + 1e-3)
        ),
    }
    return {
        **{name: (f, IMAGE) for name, f in image.items()},
        **{name: (f, ROWS) for name, f in rows.items()},
        **{name: (f, TOKENS) for name, f in tokens.items()},
    }


def convert(function: Callable[[Any], Any], shape: tuple[int, ...], how: str = "float") -> bytes:
    """The `.tflite` file that TensorFlow makes of `function`: "float", "float16", "dynamic" (int8 weights
    only), "int8"
    (all operators on integers, int8 interface) or "int16" (16-bit activations)."""
    import tensorflow as tf

    wrapped = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    holder = tf.Module()
    holder.f = wrapped
    converter = tf.lite.TFLiteConverter.from_concrete_functions([wrapped.get_concrete_function()], holder)
    if how != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if how == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if how in ("int8", "int16"):
        converter.representative_dataset = lambda: ([_random(*shape, seed=s)] for s in range(8))
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide if how == "int16" else sets.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = (
            tf.int16 if how == "int16" else tf.int8
        )
    return converter.convert()


def sample(shape: tuple[int, ...], seed: int = 99) -> np.ndarray:
    """An input that the conversion has not seen."""
    return _random(*shape, seed=seed)
