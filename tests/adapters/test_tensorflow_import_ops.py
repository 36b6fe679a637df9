"""TensorFlow's operators one by one, held against TensorFlow, in both layouts of their operands."""

from __future__ import annotations

from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")

from tensorflow_import_nets import ADAPTER, noise, parity  # noqa: E402

from attar.errors import ConversionError  # noqa: E402

KERNEL = noise(1, 1, 3, 3, seed=9)

FUNCTIONS: dict[str, Any] = {
    "abs sign": lambda x: tf.abs(x) * tf.sign(x),
    "arithmetic": lambda x: (x + 1.5) * x / (x * x + 2.0) - tf.square(x),
    "backwards": lambda x: 3.0 - x + 2.0 / (x + 4.0),
    "bounds": lambda x: tf.clip_by_value(x, -0.3, 0.4) + tf.maximum(x, 0.1) + tf.minimum(tf.nn.relu(x), 0.2),
    "vector bounds": lambda x: tf.maximum(x, [0.1, 0.2, -0.3]) + tf.minimum(x, 0.0),
    "comparisons": lambda x: tf.where((x > 0.2) | (x < -0.5), x, tf.cast(x <= 0.0, tf.float32)),
    "not equal": lambda x: tf.cast(tf.not_equal(tf.round(x), 0.0), tf.float32)
    + tf.cast(x >= 0.0, tf.float32),
    "exponentials": lambda x: tf.math.log1p(tf.exp(x)) + tf.math.expm1(x) + tf.sqrt(tf.abs(x))
    + tf.pow(x, 3.0),
    "trigonometry": lambda x: tf.sin(x) + tf.cos(x) + tf.tan(x) + tf.asin(tf.tanh(x)) + tf.atan(x),
    "hyperbolic": lambda x: tf.sinh(x) + tf.cosh(x) + tf.asinh(x) + tf.acosh(x * x + 1.0) + tf.atanh(x * 0.5),
    "error function": lambda x: tf.math.erf(x) + tf.math.erfc(x),
    "rounding": lambda x: tf.floor(4 * x) + tf.math.ceil(4 * x) + tf.round(8 * x),
    "floor division": lambda x: tf.math.floordiv(5 * x, 0.7) + tf.math.floormod(5 * x, 0.7),
    "safe division": lambda x: tf.math.divide_no_nan(x, tf.nn.relu(x)),
    "finite": lambda x: tf.cast(tf.math.is_finite(x / tf.nn.relu(x)), tf.float32) + x,
    "activations": lambda x: tf.nn.elu(x) + tf.nn.selu(x) + tf.nn.softplus(x) + tf.nn.softsign(x)
    + tf.nn.relu6(7 * x),
    "leaky": lambda x: tf.nn.leaky_relu(x, 0.3) + tf.nn.swish(x) + tf.sigmoid(x) + tf.tanh(x),
    "gelu": lambda x: tf.nn.gelu(x) + tf.nn.gelu(x, approximate=True),
    "softmax": lambda x: tf.nn.softmax(x) + tf.nn.log_softmax(x) + tf.nn.softmax(x, axis=1),
    "reductions": lambda x: tf.reduce_sum(x, [1, 2]) + tf.reduce_max(x, [1, 2]) - tf.reduce_min(x, [2, 1]),
    "one axis": lambda x: tf.reduce_mean(x, 2) + tf.reduce_prod(x, 2) + tf.norm(x, axis=2),
    "channels": lambda x: x - tf.reduce_mean(x, -1, keepdims=True) + tf.math.reduce_std(x, -1, keepdims=True),
    "kept": lambda x: x * tf.reduce_mean(x, [1, 2], keepdims=True),
    "all and any": lambda x: tf.cast(tf.reduce_all(x > -0.9, [1, 2]), tf.float32)
    + tf.cast(tf.reduce_any(x > 0.9, [1, 2]), tf.float32),
    "arg": lambda x: tf.argmax(x, -1) + tf.cast(tf.argmin(x, -1, output_type=tf.int32), tf.int64) + 1,
    "cumulative": lambda x: tf.cumsum(x, 1) + tf.cumsum(x, 2, exclusive=True) + tf.cumsum(x, 3, reverse=True),
    "slices": lambda x: x[:, 1:, ::2, :2],
    "negative slices": lambda x: x[:, ::-1, -3:-1],
    "taken": lambda x: x[:, 2, ..., -1],
    "new axes": lambda x: x[:, tf.newaxis, 1:4, ..., tf.newaxis, 1],
    "slice": lambda x: tf.slice(x, [0, 1, 2, 0], [-1, 3, -1, 2]),
    "open ends": lambda x: x[:, : tf.shape(x)[1] - 1, 1 : tf.shape(x)[2]],
    "joined": lambda x: tf.concat([x, 2 * x, tf.ones_like(x)], -1) + tf.concat([x, x, tf.zeros_like(x)], 3),
    "stacked": lambda x: tf.stack([x, x * 2], 2) + tf.reduce_sum(tf.stack([x, x], -1)),
    "unstacked": lambda x: tf.add_n([(k + 1.0) * p for k, p in enumerate(tf.unstack(x, axis=3))]),
    "split": lambda x: tf.split(x, 3, -1)[1] * tf.split(x, [1, -1], 3)[0],
    "padded": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [2, 0]], constant_values=0.5),
    "mirrored": lambda x: tf.pad(x, [[0, 0], [1, 2], [2, 1], [0, 0]], "REFLECT")
    + tf.pad(tf.pad(x, [[0, 0], [0, 1], [1, 0], [0, 0]], "SYMMETRIC"), [[0, 0], [1, 1], [1, 1], [0, 0]]),
    "turned": lambda x: tf.reverse(x, [1, 3]) + tf.reverse(tf.reverse(x, [2]), [2]) + tf.roll(x, 2, 1),
    "tiled": lambda x: tf.tile(x, [1, 2, 1, 3]),
    "repeated": lambda x: tf.repeat(x, 2, 3) + tf.repeat(x, 2, -1),
    "moved": lambda x: tf.transpose(x, [0, 3, 1, 2])
    + tf.transpose(tf.transpose(x, [0, 2, 1, 3]), [0, 3, 2, 1]),
    "reshaped": lambda x: tf.reshape(x, [-1, 6, 15])
    + tf.reshape(tf.reshape(x, [-1, 90]), [tf.shape(x)[0], 6, 15]),
    "squeezed": lambda x: tf.squeeze(tf.expand_dims(x, 2) + tf.expand_dims(x, -3), 2),
    "broadcast": lambda x: tf.broadcast_to(x[:, :1], tf.shape(x)) + x,
    "gathered": lambda x: tf.gather(x, [2, 0], axis=3) + tf.gather(x, [1, 2], axis=-1),
    "one hot": lambda x: tf.one_hot(tf.cast(4 * x, tf.int32), 3, on_value=2.0, off_value=-1.0),
    "best": lambda x: tf.math.top_k(x, 2).values + tf.cast(tf.math.top_k(x, 2).indices, tf.float32),
    "triangle": lambda x: tf.linalg.band_part(x, -1, 0) + tf.linalg.band_part(x, 1, 1),
    "product": lambda x: tf.matmul(x, noise(3, 4)) + tf.matmul(x, noise(4, 3), transpose_b=True),
    "products": lambda x: tf.matmul(x, x, transpose_b=True) + tf.reduce_sum(tf.matmul(x, x, True)),
    "turned products": lambda x: tf.matmul(tf.transpose(x, [0, 1, 3, 2]), x) + tf.reduce_mean(x),
    "einsum": lambda x: tf.einsum("bhwc,bhvc->bhwv", x, x) + tf.einsum("bhwc,cd->bhwd", x, noise(3, 6)),
    "einsum, more": lambda x: tf.einsum("bhwc,cde->bhwde", x, noise(3, 2, 4)) + tf.einsum("...c,c->...", x,
                                                                     noise(3))[..., None, None],
    "casts": lambda x: tf.cast(tf.cast(3 * x, tf.int32), tf.float32) + tf.cast(x > 0, tf.float32),
    "larger": lambda x: tf.image.resize(x, [11, 13]) + tf.image.resize(x, [11, 13], "nearest"),
    "smaller": lambda x: tf.image.resize(x, [3, 4]) + tf.image.resize(x, [3, 4], "nearest"),
    "doubled": lambda x: tf.image.resize(x, [10, 12]) + tf.image.resize(x, [10, 12], "nearest"),
    "old corners": lambda x: tf.compat.v1.image.resize_bilinear(x, [9, 13], align_corners=True)
    + tf.compat.v1.image.resize_nearest_neighbor(x, [9, 13], align_corners=True),
    "old": lambda x: tf.compat.v1.image.resize_bilinear(x, [9, 13])
    + tf.compat.v1.image.resize_nearest_neighbor(x, [9, 13]),
    "space": lambda x: tf.nn.depth_to_space(tf.tile(x, [1, 1, 1, 4]), 2) + tf.nn.depth_to_space(
        tf.nn.space_to_depth(tf.image.resize(x, [10, 12]), 2), 2),
    "dilated": lambda x: tf.nn.conv2d(x, noise(2, 2, 3, 4), 1, "SAME", dilations=2),
    "dilated, depthwise": lambda x: tf.nn.depthwise_conv2d(x, noise(2, 2, 3, 2), [1] * 4, "SAME",
        dilations=[2, 2]),
    "explicit": lambda x: tf.nn.conv2d(x, noise(2, 3, 3, 4), 2, [[0, 0], [1, 0], [2, 1], [0, 0]]),
    "pools": lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME") + tf.nn.avg_pool2d(x, 3, 2, "SAME"),
    "batches": lambda x: tf.batch_to_space(tf.nn.relu(tf.space_to_batch(x, [2, 2], [[1, 0], [0, 0]])), [2, 2],
                                           [[1, 0], [0, 0]]),
    "scattered": lambda x: tf.tensor_scatter_nd_update(x[0], [[0], [2]], x[0, 1:3]) + tf.scatter_nd(
        [[1], [1], [3]], x[0, :3], [5, 6, 3]),
    "chosen": lambda x: tf.compat.v1.where(x[:, 0, 0, 0] > 0, x, -x) + tf.gather_nd(x[0], [[1, 2]])[0],
    "integers": lambda x: tf.math.floormod(tf.cast(9 * x, tf.int32), -4) + tf.cast(9 * x, tf.int32) // 4
    + tf.maximum(tf.cast(9 * x, tf.int32), 2) + 100,
}  # fmt: skip


@pytest.mark.parametrize("held", ["plain", "nchw"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators(name: str, held: str) -> None:
    body = FUNCTIONS[name]

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 6, 3], name="x")], autograph=False)
    def function(x):
        return body(tf.nn.conv2d(x, KERNEL, 1, "VALID") if held == "nchw" else x)

    loaded = ADAPTER.load(function)
    parity(loaded, {"x": noise(2, 5, 6, 3)})
    parity(loaded, {"x": noise(3, 5, 6, 3, seed=5)})


@pytest.mark.parametrize("name", ["slices", "padded", "pools", "products", "softmax", "doubled", "kept"])
def test_operators_on_images_of_any_size(name: str) -> None:
    body = FUNCTIONS[name]

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], name="x")], autograph=False)
    def function(x):
        return body(tf.nn.conv2d(x, KERNEL, 1, "SAME"))

    loaded = ADAPTER.load(function)
    for shape in ((2, 5, 6, 3), (1, 8, 7, 3)):
        parity(loaded, {"x": noise(*shape)})


def test_what_would_be_nearly_right_is_refused() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 5, 6, 3], name="x")], autograph=False)
    def function(x):
        return tf.image.resize(x, [9, 13], "bicubic")

    with pytest.raises(ConversionError, match="cubic"):
        ADAPTER.load(function)
