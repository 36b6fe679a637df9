"""The Keras layer for ONNX operators that Keras has no layer for.

It is registered as `attar>Operator`. Its config is plain data: the operator, its attributes, its constants;
what it computes comes from attar's op table, so nothing in a saved model is code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from attar.conversion.view import op_key
from attar.errors import ConversionError, InputError
from attar_tensorflow.writing.context import Ctx, Lowering, Tensor, View
from attar_tensorflow.writing.encode import decode_node
from attar_tensorflow.writing.evaluate import lowered, tensor_of


@keras.saving.register_keras_serializable(package="attar")
class Operator(keras.layers.Layer):
    """One ONNX operator.

    Args:
        node: the operator as `attar_tensorflow.writing.encode.encode_node` writes it; an input with a
            "constant" is that constant, one with a "weight" is the layer's variable of that name, and the
            others are the tensors that the layer is called on, in order.
        table: lowerings; those of attar and of the registered plugins unless given.
    """

    def __init__(
        self, node: dict[str, Any], *, table: Mapping[str, Lowering] | None = None, **options: Any
    ) -> None:
        options.setdefault("autocast", False)
        super().__init__(**options)
        self.node = node
        self.refusal: ConversionError | None = None
        self._decoded = decode_node(node, self.name)
        self._lower = _lowering(op_key(self._decoded), table)
        self._wanted = [bool(o["wanted"]) for o in node["outputs"]]
        self._own: dict[int, Any] = {}
        for index, entry in enumerate(node["inputs"]):
            if entry is not None and entry.get("weight"):
                self._own[index] = self.add_weight(
                    name=entry["weight"],
                    shape=tuple(entry["shape"]),
                    dtype=_KERAS_TYPES.get(entry["dtype"], entry["dtype"].lower()),
                    initializer="zeros",
                    trainable=bool(entry["trainable"]),
                )
        self._fed = [
            i
            for i, entry in enumerate(node["inputs"])
            if entry is not None and i not in self._own and entry.get("constant") is None
        ]
        self.built = True

    def fill(self, weights: Mapping[int, np.ndarray]) -> None:
        """Set the variable of each input."""
        for index, array in weights.items():
            self._own[index].assign(array)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        view = View(self._decoded, opset=self.node["opset"], wanted=self._wanted)
        try:
            tensors = [self._tensor(i, given, view) for i in range(len(self._decoded.inputs))]
            outputs = lowered(self._lower, Ctx(tensors, bool(training)), view)
        except ConversionError as error:
            self.refusal = error  # Keras wraps what escapes from here
            raise
        kept = [o for o, wanted in zip(outputs, self._wanted, strict=False) if wanted]
        return kept[0] if len(kept) == 1 else kept

    def _tensor(self, index: int, given: list[Any], view: View) -> Tensor | None:
        """Input `index` of the operator: absent, a variable, what the layer is called on, or a constant."""
        value = self._decoded.inputs[index]
        if value is None:
            return None
        if index in self._own:
            return tf.convert_to_tensor(self._own[index].value)
        if index in self._fed:
            return given[self._fed.index(index)]
        return tensor_of(value.const_value.numpy(), view)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "node": copy.deepcopy(self.node)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Operator:
        """The layer of a config.

        Raises:
            InputError: the config is damaged, or its operator is unknown.
        """
        if not isinstance(config.get("node"), dict):
            raise InputError("the config of an attar layer holds no node")
        return cls(**config)


_KERAS_TYPES = {"FLOAT": "float32", "DOUBLE": "float64"}


def _lowering(op: str, table: Mapping[str, Lowering] | None) -> Lowering:
    from attar.registry import default_registry
    from attar_tensorflow.writing.table import LOWERINGS

    for known in (table or {}, LOWERINGS):
        if op in known:
            return known[op]
    taught = default_registry().op_table("attar_lowerings", "tensorflow")
    if op not in taught:
        raise InputError(
            f"the model uses the operator {op!r}, which attar does not know",
            hint="install the plugin that it was written with",
        )
    return taught[op]
