"""MXNet's elementwise operators, to be read."""

from __future__ import annotations

import numpy as np
from mxnet_cases import Case, X, case, ints, rand

LOGIC = (
    "equal",
    "not_equal",
    "greater",
    "greater_equal",
    "lesser",
    "lesser_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
)

ELEMENTS: list[Case] = [
    # one input
    *(
        case(o, X)
        for o in [
            "abs",
            "negative",
            "sign",
            "relu",
            "square",
            "exp",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "tanh",
            "arctan",
            "arcsinh",
            "sigmoid",
            "softsign",
            "erf",
            "degrees",
            "radians",
            "ceil",
            "floor",
            "fix",
            "trunc",
            "round",
            "rint",
            "cbrt",
            "expm1",
            "logical_not",
        ]
    ),
    *(
        case(o, rand(3, 4, low=0.2))
        for o in ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "rcbrt", "reciprocal"]
    ),
    *(case(o, rand(3, 4, low=-0.9, high=0.9)) for o in ["arcsin", "arccos", "arctanh"]),
    case("arccosh", rand(3, 4, low=1.1)),
    *(
        case(o, np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32))
        for o in ("round", "rint", "fix", "_npi_rint")
    ),
    *(case(o, ints(3, 4, low=-4, dtype=np.int32)) for o in ("abs", "negative", "sign", "square", "floor")),
    *(
        case(f"_npi_{o}", rand(2, 3))
        for o in ["exp", "tanh", "absolute", "negative", "square", "sign", "ceil", "floor"]
    ),
    case("_npx_relu", X),
    case("_npx_sigmoid", X),
    # two inputs
    *(
        case(f"broadcast_{o}", X, rand(2, 1, 8, 1, seed=3))
        for o in [
            "add",
            "sub",
            "mul",
            "div",
            "maximum",
            "minimum",
            "hypot",
            "mod",
            "equal",
            "greater",
            "lesser",
            "logical_and",
        ]
    ),
    *(case(f"broadcast_{o}", ints(3, 4), ints(3, 1)) for o in (*LOGIC, "mod")),
    case("broadcast_power", rand(3, 4, low=0.1), rand(1, 4)),
    *(case(f"elemwise_{o}", X, rand(2, 3, 8, 6, seed=5)) for o in ["add", "sub", "mul", "div"]),
    *(
        case(f"broadcast_{o}", ints(3, 4, low=-9, high=9, dtype=np.int32), ints(3, 1, low=1, dtype=np.int32))
        for o in ["add", "mul", "div", "mod"]
    ),
    case("add_n", X, rand(2, 3, 8, 6, seed=5), rand(2, 3, 8, 6, seed=6), num_args=3),
    case("_Plus", X, X),
    case("_maximum", X, rand(2, 3, 8, 6, seed=5)),
    *(
        case(f"_npi_{o}", X, rand(6, seed=4))
        for o in ["add", "subtract", "multiply", "true_divide", "maximum", "mod"]
    ),
    *(case(f"_npi_{o}", ints(3, 4), ints(4)) for o in ["equal", "less", "greater_equal"]),
    case("_npi_true_divide", ints(3, 4, dtype=np.int32), ints(3, 4, low=1, dtype=np.int32)),
    case("_npi_add", ints(3, 4, dtype=np.int32), rand(4)),
    # a number
    *(
        case(f"_{o}_scalar", X, scalar=1.5)
        for o in [
            "plus",
            "minus",
            "rminus",
            "mul",
            "div",
            "rdiv",
            "maximum",
            "minimum",
            "mod",
            "rmod",
            "hypot",
            "equal",
            "greater",
            "lesser",
        ]
    ),
    *(case(f"_{o}_scalar", ints(3, 4), scalar=2.0) for o in LOGIC),
    case("_power_scalar", rand(3, 4, low=0.1), scalar=1.7),
    case("_rpower_scalar", X, scalar=1.7),
    case("_power_scalar", X, scalar=3),
    *(
        case(f"_{o}_scalar", ints(3, 4, low=-7, dtype=np.int32), scalar=3)
        for o in ["plus", "mul", "div", "mod", "maximum"]
    ),
    *(
        case(f"_{o}_scalar", ints(3, 4, low=-7, dtype=np.int32), scalar=2.5, is_int=False)
        for o in ["plus", "mul", "div"]
    ),
    *(
        case(f"_npi_{o}_scalar", ints(3, 4, dtype=np.int32), scalar=2.5, is_int=False)
        for o in ("add", "multiply", "less")
    ),
    case("_PlusScalar", X, scalar=2),
    *(
        case(f"_npi_{o}_scalar", X, scalar=1.5)
        for o in ["add", "subtract", "rsubtract", "multiply", "true_divide", "rtrue_divide", "less"]
    ),
    case("_npi_true_divide_scalar", ints(3, 4, dtype=np.int32), scalar=2),
    case("_npi_power_scalar", rand(3, 4), scalar=2),
    case("clip", X, a_min=-0.5, a_max=1),
    case("clip", ints(3, 4, low=-9, high=9, dtype=np.int32), a_min=-3, a_max=4),
    *(
        case("Cast", rand(3, 4, low=-5, high=5), dtype=t)
        for t in ("int32", "float16", "int8", "bool", "int64", "float64")
    ),
    case("amp_cast", X, dtype="float16"),
]
