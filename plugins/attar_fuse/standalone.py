"""BatchNormalization that no layer can take in, written as the layer that it is: a depthwise 1x1 convolution.

    y = scale x + shift  per channel  =  Conv(x, W = scale, b = shift, group = C)

Runtimes run that in their blocked layouts and on integer kernels, which BatchNormalization keeps them from
(networks that normalise before the activation, ResNet v2 and DenseNet, are full of it).
"""

from __future__ import annotations

import onnx_ir as ir

from attar.graph import const_array
from attar.rewrite.edit import Edit, at, dims, is_float
from attar_fuse.affine import affine_of, cast_back


def batchnorm_to_conv(node: ir.Node, edit: Edit) -> bool:
    """BatchNormalization of images (rank 4) -> depthwise 1x1 Conv."""
    source, shape = node.inputs[0], dims(node.inputs[0])
    if source is None or shape is None or len(shape) != 4 or not is_float(source):
        return False
    channels = shape[1]
    if not isinstance(channels, int):
        return False
    affine, like = affine_of(node, 1, channels), const_array(at(node, 1))
    if isinstance(affine, str) or like is None:
        return False
    scale, shift = cast_back(affine.scale, like), cast_back(affine.shift, like)
    if scale is None or shift is None:
        return False
    weight = edit.constant(f"{node.name}_scale", scale.reshape(channels, 1, 1, 1))
    bias = edit.constant(f"{node.name}_shift", shift)
    reason = edit.refusal(node)
    conv = edit.replace(node, "Conv", [source, weight, bias], {"group": channels, "kernel_shape": [1, 1]})
    if reason:
        edit.refuse(conv, f"BatchNormalization on its own: {reason}")
    return edit.did("BatchNormalization on its own turned into a depthwise Conv")


RULES = {"BatchNormalization": [batchnorm_to_conv]}
