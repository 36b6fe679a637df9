"""Removing channels is exact on networks of all families from three frameworks: what is left computes what
the whole computes once the weights that make the chosen channels are zeroed by hand. Where channels stay, the
report says why."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from prune_zeroing import distance, removed

import attar
from attar import graph

# Why channels may stay: nothing else may keep any of these networks from being pruned.
OUTPUT, NORM = "an output of the model", "LayerNormalization mixes"
TOKENS = "GlobalAveragePool reads it"
BOXES = "Reshape folds it with another axis"
ALLOWED = {
    "ViT": (OUTPUT, NORM),
    "BERT-like": (OUTPUT, NORM),
    "GPT-like, shared embedding": (OUTPUT, NORM),
    "MLP-Mixer": (OUTPUT, NORM, TOKENS, "ReduceMean reads it"),
    "detector": (OUTPUT, BOXES),
    "ShuffleNetV1": (OUTPUT, "cannot be told apart"),  # groups of eight, shuffled by three: all are tied
}
# Frameworks that are quick to read are tried in every run, of the others some.
PYTORCH = {
    name: name != "BERT-like"
    for name in (
        "MobileNetV1", "MobileNetV2", "MobileNetV3", "EfficientNet", "ResNet", "ResNeXt", "DenseNet",
        "SqueezeNet", "ShuffleNetV1", "ShuffleNetV2", "Inception", "U-Net", "detector", "ViT", "BERT-like",
        "GPT-like, shared embedding", "LSTM", "GRU", "BiLSTM", "MLP-Mixer", "VGG",
    )
}  # fmt: skip
KERAS = {
    **dict.fromkeys(("MobileNetV1", "ResNeXt", "SqueezeNet", "ShuffleNetV2", "U-Net", "detector"), False),
    **dict.fromkeys(("ViT", "BERT-like", "MLP-Mixer", "GPT-like, shared embedding"), False),
    **dict.fromkeys(("LSTM", "GRU", "BiLSTM"), False),
    **dict.fromkeys(("MobileNetV2", "MobileNetV3", "EfficientNet", "EfficientNetV2", "ResNet"), True),
    **dict.fromkeys(("DenseNet", "Inception", "Xception", "NASNet"), True),
}
MXNET = {
    **dict.fromkeys(("MobileNetV1", "MobileNetV2", "LSTM", "GRU", "BERT-like", "U-Net"), False),
    "GPT-like, shared embedding": False,
    **dict.fromkeys(("ResNet", "ResNetV2", "VGG", "SqueezeNet", "DenseNet", "Inception"), True),
}
TABLE = [
    pytest.param(framework, name, marks=[pytest.mark.slow] if slow else [], id=f"{framework}-{name}")
    for framework, names in (("torch", PYTORCH), ("keras", KERAS), ("mxnet", MXNET))
    for name, slow in names.items()
]
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"}


def from_torch(name: str) -> Any:
    import torch
    from prune_torch_nets import NETS

    torch.manual_seed(0)
    net, inputs = NETS[name]()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                torch.nn.init.uniform_(value, low, high)
    return net.eval(), inputs


def from_keras(name: str) -> Any:
    import keras
    from prune_keras_nets import NETS, application

    keras.utils.set_random_seed(0)
    return NETS[name]() if name in NETS else application(name)


def from_mxnet(name: str) -> Any:
    from prune_mxnet_nets import NETS, zoo

    return NETS[name]() if name in NETS else zoo(name)


def read(framework: str, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The network as attar reads it, and inputs for it."""
    for needed in {"keras": ("keras", "tensorflow")}.get(framework, (framework,)):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    source, inputs = {"torch": from_torch, "keras": from_keras, "mxnet": from_mxnet}[framework](name)
    model = attar.load(source, inputs=inputs if len(inputs) > 1 else inputs[0])
    return model, {v.name or "": a for v, a in zip(model.graph.inputs, inputs, strict=True)}


@pytest.mark.parametrize(("framework", "name"), TABLE)
def test_removal_equals_zeroing_by_hand(framework: str, name: str) -> None:
    model, feeds = read(framework, name)
    less, hand, ctx = removed(model)
    assert hand.zeroed is not None
    assert distance(less, hand.zeroed, feeds) <= 1e-5
    assert distance(hand.zeroed, model, feeds) > 1e-3  # or it would be no test
    assert any(change.startswith(f"{hand.units} of ") for change in ctx.step.changes)
    assert graph.byte_size(less) < graph.byte_size(model)
    told = {skip.name: skip.reason for skip in ctx.step.skipped}
    for node in model.graph:
        if node.op_type in WEIGHTED and any(graph.const_array(v) is not None for v in node.inputs[1:2]):
            assert node.name in hand.makers or told[node.name or ""]
    for reason in told.values():
        assert any(known in reason for known in ALLOWED.get(name, (OUTPUT,))), reason
