"""MXNet's layers, to be read."""

from __future__ import annotations

import numpy as np
from mxnet_cases import IMAGE, Case, X, case, ints, rand

LAYERS: list[Case] = [
    # layers
    case("Convolution", X, rand(5, 3, 3, 3), rand(5), stored=1, kernel="(3, 3)", num_filter=5, pad="(1, 1)"),
    case(
        "Convolution", X, rand(6, 1, 3, 2), stored=1, kernel="(3, 2)", num_filter=6, num_group=3, no_bias=True
    ),
    case(
        "Convolution",
        X,
        rand(5, 3, 3, 3),
        rand(5),
        stored=1,
        kernel="[3L, 3L]",
        num_filter=5,
        stride="(2,1)",
        dilate="(2,1)",
    ),
    case("Convolution", rand(2, 3, 9), rand(4, 3, 3), rand(4), stored=1, kernel="(3,)", num_filter=4),
    case(
        "Convolution",
        rand(1, 2, 5, 5, 5),
        rand(3, 2, 2, 2, 2),
        rand(3),
        stored=1,
        kernel="(2,2,2)",
        num_filter=3,
    ),
    case(
        "Deconvolution",
        X,
        rand(3, 4, 3, 3),
        stored=1,
        kernel="(3,3)",
        num_filter=4,
        stride="(2,2)",
        pad="(1,1)",
        adj="(1,1)",
    ),
    case(
        "Deconvolution",
        X,
        rand(3, 2, 3, 3),
        rand(6),
        stored=1,
        kernel="(3,3)",
        num_filter=6,
        num_group=3,
        no_bias=False,
    ),
    case("FullyConnected", X, rand(5, 144), rand(5), stored=1, num_hidden=5),
    case("FullyConnected", X, rand(5, 6), rand(5), stored=1, num_hidden=5, flatten=False),
    case("FullyConnected", X, rand(5, 6), stored=1, num_hidden=5, flatten=False, no_bias="1"),
    case("FullyConnected", rand(3, 7), rand(5, 7), rand(5), stored=1, num_hidden=5),
    case("Embedding", ints(2, 4, high=9, low=-1), rand(7, 3), stored=1, input_dim=7, output_dim=3),
    case("Embedding", ints(2, 4, high=6, dtype=np.int32), rand(7, 3), stored=1, input_dim=7, output_dim=3),
    # norms
    case("BatchNorm", X, rand(3), rand(3), rand(3), rand(3, low=0.1), stored=1),
    case("BatchNorm", X, rand(3), rand(3), rand(3), rand(3, low=0.1), stored=1, fix_gamma=False, eps=1e-5),
    case("BatchNorm", X, rand(6), rand(6), rand(6), rand(6, low=0.1), stored=1, fix_gamma="0", axis=3),
    case("BatchNorm", rand(4, 3), rand(3), rand(3), rand(3), rand(3, low=0.1), stored=1, fix_gamma=False),
    case("LayerNorm", X, rand(6), rand(6), stored=1),
    case("LayerNorm", X, rand(3), rand(3), stored=1, axis=1, eps=1e-3),
    case("GroupNorm", IMAGE, rand(2), rand(2), stored=1, num_groups=2),
    case("InstanceNorm", X, rand(3), rand(3), stored=1),
    case("L2Normalization", X),
    case("L2Normalization", X, mode="channel", eps=1e-3),
    case("L2Normalization", X, mode="spatial"),
    case("LRN", IMAGE, nsize=3, alpha=0.01),
    case("LRN", IMAGE, nsize=5, alpha=0.1, knorm=1, beta=0.5),
    case("moments", X, outputs=2, axes="(0, 2)"),
    case("moments", X, outputs=2, axes="(1,)", keepdims=True),
    # pooling
    *(
        case(
            "Pooling",
            IMAGE,
            kernel=k,
            stride=s,
            pad=p,
            pool_type=t,
            pooling_convention=c,
            count_include_pad=i,
        )
        for t in ("max", "avg", "sum")
        for k, s, p in (
            ("(3, 3)", "(2, 2)", "(1, 1)"),
            ("(2, 3)", "(2, 2)", "(0, 1)"),
            ("(2, 2)", "(3, 3)", "(0, 0)"),
        )
        for c in ("valid", "full")
        if not (t == "avg" and c == "full" and s == "(3, 3)")  # windows without a pixel
        for i in ((True, False) if t == "avg" else (True,))
    ),
    case("Pooling", IMAGE, kernel="(3,3)"),
    case("Pooling", IMAGE, kernel="(1,1)", global_pool=True, pool_type="avg"),
    case("Pooling", IMAGE, global_pool=True, pool_type="max"),
    case("Pooling", IMAGE, global_pool=True, pool_type="sum", kernel="(1,1)"),
    case("Pooling", rand(2, 3, 9), kernel="(3,)", stride="(2,)", pool_type="avg", pad="(1,)"),
    case("Pooling", rand(1, 2, 5, 6, 7), kernel="(2,2,2)", stride="(2,2,2)", pool_type="max"),
    case("Pooling", np.abs(IMAGE), kernel="(2,2)", pool_type="lp", p_value=2),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE, output_size="(3,)"),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE, output_size="(4, 5)"),
    case("_contrib_AdaptiveAvgPooling2D", IMAGE, output_size="(3, 7)"),
    case("UpSampling", X, scale=2, sample_type="nearest", num_args=1),
    case(
        "UpSampling", X, rand(3, 1, 4, 4), stored=1, scale=2, sample_type="bilinear", num_args=2, num_filter=3
    ),
    case("_contrib_BilinearResize2D", X, height=5, width=13),
    case("_contrib_BilinearResize2D", X, height=16, width=12, align_corners=False),
    case("_contrib_BilinearResize2D", X, scale_height=2, scale_width=1.5, mode="size"),
    case("_contrib_BilinearResize2D", X, rand(2, 3, 4, 4), mode="like"),
    # activations
    *(case("Activation", X, act_type=t) for t in ("relu", "sigmoid", "softrelu", "softsign", "tanh")),
    *(case("LeakyReLU", X, act_type=t) for t in ("elu", "gelu", "leaky", "rrelu", "selu")),
    case("LeakyReLU", X, slope=0.1),
    case("LeakyReLU", X, rand(3), stored=1, act_type="prelu"),
    case("LeakyReLU", X, rand(1), stored=1, act_type="prelu"),
    case("hard_sigmoid", X),
    case("hard_sigmoid", X, alpha=0.3, beta=0.4),
    case("softmax", X),
    case("softmax", X, axis=1, temperature=2.5),
    case("softmax", rand(2, 5), np.array([2, 5], np.int32), use_length=True),
    case("softmax", rand(2, 3, 5), ints(2, 3, low=1, high=6, dtype=np.int32), use_length=True),
    case("log_softmax", X, axis=-2),
    case("softmin", X),
    case("SoftmaxActivation", X, mode="channel"),
    case("SoftmaxActivation", X),
    case("SoftmaxOutput", rand(4, 5), np.zeros(4, np.float32)),
    case("SoftmaxOutput", X, np.zeros((2, 8, 6), np.float32), multi_output=True),
    case("SoftmaxOutput", X, np.zeros((2, 3, 8), np.float32), preserve_shape=True),
    case("LogisticRegressionOutput", X, X),
    case("LinearRegressionOutput", X, X),
    case("MAERegressionOutput", X, X),
    case("SVMOutput", rand(4, 5), np.zeros(4, np.float32)),
    case("MakeLoss", X),
    case("BlockGrad", X),
    case("Dropout", X, p=0.9),
    case("smooth_l1", X, scalar=1.5),
    case("_contrib_div_sqrt_dim", X),
    case("_contrib_quadratic", X, a=1.5, b=-2, c=0.5),
]
