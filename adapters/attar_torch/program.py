"""Reading `torch.export.ExportedProgram`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from attar.adapters import Loaded
from attar.errors import AttarError, ConversionError
from attar_torch.axes import is_dynamic
from attar_torch.convert import to_ir
from attar_torch.finish import finish
from attar_torch.job import OPSET, essence
from attar_torch.quiet import quiet
from attar_torch.structure import Leaf, flatten_outputs, from_numpy, to_numpy


def load_program(program: Any) -> Loaded:
    """See `TorchAdapter.load`. Dimensions that are dynamic in the program stay so; axis 0 is called `batch`.

    Raises:
        ConversionError: torch's exporter cannot say the program in ONNX.
    """
    users = list(program.graph_signature.user_inputs)
    metas = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    names = [u for u in users if isinstance(u, str) and isinstance(metas.get(u), torch.Tensor)]
    outputs = _output_names(program, names)
    try:
        model = to_ir(program, names, outputs, own=False)
        shapes = _shapes(metas, names)
        notes = finish(model, shapes, "ExportedProgram", OPSET)
    except AttarError:
        raise
    except Exception as error:  # torch raises many types here
        raise ConversionError(f"the exported program cannot be written as ONNX: {essence(error)}") from error
    flat_example = _flat_example(program, users, names)
    module = program.module()

    def reference(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        assert flat_example is not None
        flat = [
            from_numpy(feeds[u], e) if u in feeds else e for u, e in zip(users, flat_example, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
        with torch.no_grad(), quiet():
            return [to_numpy(t) for t in flatten_outputs(module(*args, **kwargs))[0]]

    if flat_example is None:
        return Loaded(model, notes=(*notes, "the program carries no example inputs"))
    example = {u: to_numpy(e) for u, e in zip(users, flat_example, strict=True) if u in names}
    return Loaded(model, reference=reference, example=example, notes=tuple(notes))


def _output_names(program: Any, taken: Sequence[str]) -> list[str]:
    spec = program.call_spec.out_spec
    result = pytree.tree_unflatten([Leaf() for _ in range(spec.num_leaves)], spec)
    names = flatten_outputs(result)[1]
    return [f"{n}_out" if n in taken else n for n in names]


def _shapes(metas: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[int | str]]:
    first = [str(metas[n].shape[0]) for n in names if metas[n].ndim and is_dynamic(metas[n].shape[0])]
    batch = first[0] if first else None
    return {
        name: [
            ("batch" if str(d) == batch else str(d)) if is_dynamic(d) else int(d) for d in metas[name].shape
        ]
        for name in names
    }


def _flat_example(program: Any, users: Sequence[Any], names: Sequence[str]) -> list[Any] | None:
    if not program.example_inputs:
        return None
    flat, _ = pytree.tree_flatten(program.example_inputs)
    return flat if len(flat) == len(users) else None
