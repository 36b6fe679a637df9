"""The normal form that every pass may rely on."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from attar.errors import InputError, VerifyError
from attar.graph.light import light_proto
from attar.graph.opset import to_opset
from attar.graph.reshapes import name_reshaped_axes
from attar.graph.shapes import refresh_shapes
from attar.graph.structure import all_nodes, tidy, unique_names

OPSET = 21
IR_VERSION = 10


def normalize(model: ir.Model, opset: int = OPSET) -> list[str]:
    """Bring `model` to normal form, in place.

    Normal form: default domain at `opset` (higher only where operators need it), IR version 10 (or the first
    that knows the opset), model-local functions inlined, every node and value named once, Constant nodes
    lifted to initializers, no initializer among the graph inputs, nothing dead, types and shapes inferred
    strictly, axes that a Reshape keeps known by name behind it.

    Returns:
        What was done that a reader of a report should know.

    Raises:
        InputError: the model contradicts itself or uses functions that cannot be inlined.
    """
    notes = _imports(model)
    # Before IR version 4 initializers had to be inputs, and onnx's functions still insist on it for such
    # models.
    model.ir_version = max(IR_VERSION, model.ir_version)
    if RemoveInitializersFromInputsPass()(model).modified:
        notes.append("initializers were listed as inputs; they are constants now")
    if model.functions:
        count = len(model.functions)
        _inline(model)
        notes.append(f"{count} model-local function{'s' * (count > 1)} inlined")
    unique_names(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _infer(model, notes)
    notes += to_opset(model, opset)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)  # those a conversion made
    try:
        tidy(model)
        refresh_shapes(model)
        if name_reshaped_axes(model):
            tidy(model)
    except VerifyError as error:
        raise InputError(f"the model is not valid: {error.message}") from error
    version = model.opset_imports[""]
    model.ir_version = max(IR_VERSION, _ir_version_of(version))
    return notes


def check(model: ir.Model) -> None:
    """Hold `model` against the ONNX specification. Weights of any size are never read.

    Raises:
        InputError: it violates the specification.
    """
    try:
        onnx.checker.check_model(light_proto(model)[0])
    except Exception as error:  # the checker raises ValidationError, and others on broken protobufs
        raise InputError(f"the model is not valid ONNX: {str(error).strip()[:500]}") from error


def _imports(model: ir.Model) -> list[str]:
    """Bring the opset imports in order: one default domain, every used domain declared."""
    notes: list[str] = []
    imports = model.opset_imports
    for holder in (imports, *(f.opset_imports for f in model.functions.values())):
        if "ai.onnx" in holder:
            version = holder.pop("ai.onnx")
            holder[""] = max(version, holder.get("", 0))
    nodes = [*all_nodes(model), *(n for f in model.functions.values() for n in f.all_nodes())]
    for node in nodes:
        if node.domain == "ai.onnx":
            node.domain = ""
    if "" not in imports:
        # Without an import the specification means opset 1 for IR version 2 and nothing later; files that say
        # nothing but hold today's operators are taken at the newest definition that all their operators
        # existed in.
        imports[""] = _oldest_for(model)
        if any(n.domain == "" for n in nodes):
            notes.append(f"no opset was declared; read as opset {imports['']}")
    for node in nodes:
        imports.setdefault(node.domain, 1)
    newest = onnx.defs.onnx_opset_version()
    if imports[""] > newest:
        raise InputError(
            f"the model is written in opset {imports['']}; the installed onnx knows up to {newest}",
            hint="upgrade onnx",
        )
    unknown = sorted(
        {n.op_type for n in nodes if n.domain == "" and not onnx.defs.has(n.op_type, "")}
        - {f.name for f in model.functions.values()}
    )
    if unknown:
        raise InputError(f"the model uses operators that ONNX does not know: {', '.join(unknown)}")
    return notes


def _oldest_for(model: ir.Model) -> int:
    """The opset for a model that names none: 21, or the first that has all its operators and attributes."""
    needed = OPSET
    for node in all_nodes(model):
        if node.domain == "" and onnx.defs.has(node.op_type, ""):
            try:
                onnx.defs.get_schema(node.op_type, needed, "")
            except onnx.defs.SchemaError:
                needed = max(needed, int(onnx.defs.get_schema(node.op_type, "").since_version))
    return needed


def _inline(model: ir.Model) -> None:
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            model.opset_imports.setdefault(domain, version)
    try:
        InlinePass()(model)
    except Exception as error:  # cycles, differing opsets, graph attributes: onnx-ir has a type for each
        proto = ir.to_proto(model)
        try:
            flat = ir.from_proto(onnx.inliner.inline_local_functions(proto, convert_version=True))
        except Exception as second:
            raise InputError(f"the model's functions cannot be inlined: {error}") from second
        assert isinstance(flat, ir.Model)
        model.graph = flat.graph
        model.functions.clear()
    if left := sorted({n.op_type for n in all_nodes(model) if n.op_identifier() in model.functions}):
        raise InputError(f"the model's functions cannot be inlined: {', '.join(left)}")
    model.functions.clear()


def _infer(model: ir.Model, notes: list[str]) -> None:
    """First inference, on a model as it came: outputs may be declared wrongly, which runtimes only warn
    of."""
    try:
        refresh_shapes(model)
        return
    except VerifyError as error:
        first = error
    declared = [(v, v.shape) for v in model.graph.outputs]
    for value, _ in declared:
        value.shape = None
    try:
        refresh_shapes(model)
    except VerifyError:
        raise InputError(f"the model is not valid: {first.message}") from first
    wrong = [v.name or "?" for v, shape in declared if shape is not None and v.shape != shape]
    notes.append(f"the declared shape of {', '.join(wrong)} contradicts the graph; the inferred one is used")


def _ir_version_of(opset: int) -> int:
    versions: dict[tuple[str, int], int] = onnx.helper.OP_SET_ID_VERSION_MAP
    return versions.get(("ai.onnx", opset), IR_VERSION)
