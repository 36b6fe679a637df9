"""Old `.h5` files: their configuration is mended where Keras 3 no longer takes what older versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attar.errors import InputError

# Arguments that older versions wrote and newer ones refuse; each only where it says what is the case anyway.
_DROPPED: dict[str, dict[str, tuple[Any, ...]]] = {
    "DepthwiseConv2D": {"groups": (1,), "filters": (None,)},
    "DepthwiseConv1D": {"groups": (1,), "filters": (None,)},
    "Conv2DTranspose": {"groups": (1,)},
    "Conv1DTranspose": {"groups": (1,)},
    "Conv3DTranspose": {"groups": (1,)},
    "SeparableConv2D": {
        "groups": (1,),
        "kernel_initializer": (),
        "kernel_regularizer": (),
        "kernel_constraint": (),
    },
    "SeparableConv1D": {
        "groups": (1,),
        "kernel_initializer": (),
        "kernel_regularizer": (),
        "kernel_constraint": (),
    },
    "LSTM": {"time_major": (False,), "implementation": (1, 2)},
    "GRU": {"time_major": (False,), "implementation": (1, 2)},
    "SimpleRNN": {"time_major": (False,)},
}


def load_h5(path: Path) -> Any:
    """The model in an `.h5` file.

    Raises:
        InputError: it holds weights only, or Python code.
    """
    import h5py
    import keras

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except OSError as error:
        raise InputError(f"{path} is damaged, or no .h5 file: {error}") from error
    if text is None:
        raise InputError(
            f"{path} holds weights only, no model",
            hint="build the model, load the weights and give the model",
        )
    config = json.loads(text.decode() if isinstance(text, bytes) else text)
    kinds = {kind for kind, _ in _layers(config)}
    if "Lambda" in kinds or "__lambda__" in str(text):
        raise InputError(
            f"{path} holds a Lambda layer, whose Python code would be run on loading, so it is not read",
            hint="build the model in Python, load its weights and give the model",
        )
    wrong = [
        f"{kind} with {name}={value!r}"
        for kind, given in _layers(config)
        for name, value in given.items()
        if kind.startswith("Depthwise") and name == "groups" and value != 1
    ]
    if wrong:
        raise InputError(f"{path} holds {wrong[0]}, which Keras 3 cannot say")
    mended = {name: _lenient(getattr(keras.layers, name), given) for name, given in _DROPPED.items()
              if name in kinds and hasattr(keras.layers, name)}  # fmt: skip
    return keras.models.load_model(path, custom_objects=mended, compile=False, safe_mode=True)


def _layers(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """(class name, arguments) of all layers in a configuration."""
    if isinstance(config, list):
        return [found for item in config for found in _layers(item)]
    if not isinstance(config, dict):
        return []
    kind, given = config.get("class_name"), config.get("config")
    own = [(kind, given)] if isinstance(kind, str) and isinstance(given, dict) else []
    return own + [found for item in config.values() for found in _layers(item)]


def _lenient(layer: Any, dropped: dict[str, tuple[Any, ...]]) -> Any:
    """The layer's class, whose `from_config` passes over arguments that say nothing."""

    def from_config(cls: Any, config: dict[str, Any]) -> Any:
        kept = dict(config)
        for name, harmless in dropped.items():
            if name in kept and (not harmless or kept[name] in harmless):
                try:
                    return layer.from_config(dict(kept))
                except (TypeError, ValueError):
                    del kept[name]
        return layer.from_config(kept)

    return type(layer.__name__, (layer,), {"from_config": classmethod(from_config)})
