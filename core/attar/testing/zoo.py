"""Small models that a pass must cope with: `ZOO[name].build()` gives a new `ir.Model`, `.inputs()` what to
feed it.

All are at opset 21, have seeded weights and dynamic batch unless they say otherwise, and run in ONNX Runtime
in about a millisecond. They are *as files come*: functions, Constant nodes and initializers listed as inputs
are still there, so call `attar.graph.normalize` before handing one to a pass, as the driver does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from attar.testing import zoo_cnn, zoo_sequence, zoo_traps
from attar.testing.zoo_sequence import VOCABULARY

Array = np.ndarray[Any, Any]
Feed = Callable[[np.random.Generator, int], dict[str, Array]]


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        name: its key in `ZOO`.
        build: makes a new model, the same each time.
        feed: draws inputs from a generator for a batch of some size.
        tags: what it is about, for choosing: "conv", "dense", "attention", "recurrent", "trap" ...
        batch: the only batch size that it takes, None if any.
    """

    name: str
    build: Callable[[], ir.Model]
    feed: Feed
    tags: frozenset[str]
    batch: int | None = None

    @property
    def about(self) -> str:
        """One line on what the model holds."""
        return " ".join((self.build.__doc__ or "").split())

    def inputs(self, seed: int = 0, batch: int = 2) -> dict[str, Array]:
        """Named inputs drawn from `seed`. A model of fixed batch ignores `batch`; sequence lengths vary with
        the seed.
        """
        return self.feed(np.random.default_rng(seed), self.batch or batch)


def normal(name: str, *shape: int, dtype: Any = np.float32) -> Feed:
    """Standard normal inputs of shape [batch, *shape]."""
    return lambda rng, batch: {name: rng.standard_normal((batch, *shape)).astype(dtype)}


def _frames(rng: np.random.Generator, batch: int, name: str, width: int) -> dict[str, Array]:
    return {name: rng.standard_normal((batch, int(rng.integers(4, 9)), width)).astype(np.float32)}


def _tokens(rng: np.random.Generator, batch: int) -> dict[str, Array]:
    return {"tokens": rng.integers(0, VOCABULARY, (batch, int(rng.integers(4, 9))))}


def _masked_tokens(rng: np.random.Generator, batch: int) -> dict[str, Array]:
    tokens = _tokens(rng, batch)["tokens"]
    lengths = rng.integers(2, tokens.shape[1] + 1, (batch, 1))
    return {"tokens": tokens, "mask": (np.arange(tokens.shape[1]) < lengths).astype(np.int64)}


def _two(rng: np.random.Generator, batch: int) -> dict[str, Array]:
    left, right = (rng.standard_normal((batch, n)).astype(np.float32) for n in (10, 6))
    return {"left": left, "right": right}


_IMAGES = {
    "residual_cnn": (16, 16),
    "depthwise_cnn": (16, 16),
    "concat_split": (12, 12),
    "grouped_odd": (11, 13),
    "squeeze_excite": (14, 14),
    "unet": (16, 16),
    "pooling_cnn": (16, 16),
    "pad_slice_shortcut": (16, 16),
    "channel_shuffle": (8, 8),
    "dead_channel": (10, 10),
    "batch_one": (8, 8),
    "shared_weight": (10, 10),
    "quantized": (8, 8),
    "unnamed_nodes": (8, 8),
    "empty_optional": (8, 8),
    "weight_is_input": (8, 8),
    "redundant": (8, 8),
}
_FEATURES = {
    "mlp": 20,
    "weight_in_if": 12,
    "weight_in_loop": 12,
    "weight_is_output": 16,
    "int4_blockwise": 32,
    "functions": 12,
    "external_data": 64,
    "constant_output": 8,
    "dead_code": 8,
}
_FEEDS: dict[str, Feed] = {
    **{name: normal("image", 3, *size) for name, size in _IMAGES.items()},
    **{name: normal("features", size) for name, size in _FEATURES.items()},
    "conv1d": normal("audio", 4, 48),
    "conv3d": normal("clip", 2, 4, 8, 8),
    "half": normal("image", 3, 8, 8, dtype=np.float16),
    "attention": lambda rng, batch: _frames(rng, batch, "vectors", zoo_sequence.WIDTH),
    "encoder": _masked_tokens,
    "embedding": _tokens,
    "tied_embedding": _tokens,
    "lstm": lambda rng, batch: _frames(rng, batch, "frames", 6),
    "gru": lambda rng, batch: _frames(rng, batch, "frames", 6),
    "several_ports": _two,
}
_BATCH = {"batch_one": 1, "empty_optional": 2}
_TAGS: dict[str, str] = {
    "residual_cnn": "conv norm residual",
    "depthwise_cnn": "conv norm residual depthwise",
    "concat_split": "conv concat split",
    "grouped_odd": "conv grouped",
    "squeeze_excite": "conv norm gate",
    "unet": "conv transposed concat resize",
    "pooling_cnn": "conv pooling",
    "conv1d": "conv norm depthwise 1d",
    "conv3d": "conv 3d",
    "pad_slice_shortcut": "conv residual",
    "channel_shuffle": "conv grouped",
    "dead_channel": "conv degenerate",
    "batch_one": "conv static",
    "mlp": "dense",
    "attention": "dense attention norm dynamic",
    "encoder": "dense attention norm dynamic tokens ports",
    "embedding": "dense dynamic tokens",
    "tied_embedding": "dense dynamic tokens shared",
    "lstm": "recurrent dynamic ports",
    "gru": "recurrent dynamic",
    "shared_weight": "conv dense shared trap",
    "weight_in_if": "dense subgraph trap",
    "weight_in_loop": "dense subgraph trap",
    "weight_is_output": "dense ports trap",
    "half": "conv norm half",
    "quantized": "conv quantized trap",
    "int4_blockwise": "dense quantized trap",
    "functions": "dense trap",
    "unnamed_nodes": "conv norm trap",
    "empty_optional": "conv resize static trap",
    "external_data": "dense trap",
    "several_ports": "dense ports trap",
    "constant_output": "dense ports trap",
    "weight_is_input": "conv trap",
    "dead_code": "dense trap",
    "redundant": "conv trap",
}


def _find(name: str) -> Callable[[], ir.Model]:
    for module in (zoo_cnn, zoo_sequence, zoo_traps):
        if hasattr(module, name):
            build: Callable[[], ir.Model] = getattr(module, name)
            return build
    raise LookupError(name)


ZOO: dict[str, ZooModel] = {
    name: ZooModel(name, _find(name), _FEEDS[name], frozenset(tags.split()), _BATCH.get(name))
    for name, tags in _TAGS.items()
}
"""Every model of the zoo by name."""
