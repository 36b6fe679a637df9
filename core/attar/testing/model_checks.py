"""What a pass promises of every model. Each check takes a `Trial` and raises `NonConformance`.

A check says nothing where the pass declined, or where an earlier check of the list already explains the
failure.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from attar.errors import AttarError
from attar.specs import TensorSpec, input_specs, output_specs
from attar.testing.trial import NonConformance, Trial, finish, prints, relative_difference, weights

_EPSILONS = {
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}


def declines_by_refused(trial: Trial) -> None:
    """The pass works, or raises `Refused` with a reason; nothing else comes out of it."""
    trial.result  # noqa: B018  computing it is the trial
    if trial.crash is not None:
        where = traceback.extract_tb(trial.crash.__traceback__)[-1]
        raise NonConformance(
            f"{trial}: raised {type(trial.crash).__name__}: {trial.crash} ({where.filename}:{where.lineno}). "
            "Leave a node that the pass cannot handle alone with ctx.skip(); decline a model with Refused"
        ) from trial.crash
    if trial.refused is not None and not trial.refused.message.strip():
        raise NonConformance(f"{trial}: refused without a reason")


def input_untouched(trial: Trial) -> None:
    """The caller's model and its tensors hold the same bytes as before, also when the pass fails."""
    trial.result  # noqa: B018
    if trial.touched:
        raise NonConformance(
            f"{trial}: changed {_few(trial.touched)} of the caller's model. Clones share tensors: give "
            "attar.graph.replace_weight a new array instead of writing into the old one"
        )


def deterministic(trial: Trial) -> None:
    """The same model and seed give the same bytes; options stay as they are; global random state is not
    touched.
    """
    result = trial.result
    if trial.crash is not None:
        return
    if trial.used_global_random:
        raise NonConformance(f"{trial}: uses the global random generator; draw from ctx.rng('some key')")
    again, refused, crash = trial.attempt(trial.original)
    if trial.options != trial.step.to_dict():
        raise NonConformance(f"{trial}: apply() changed the options of the pass")
    if crash is not None:
        raise NonConformance(f"{trial}: worked once, then raised {type(crash).__name__}: {crash}")
    if (again is None) != (result is None):
        raise NonConformance(f"{trial}: declined only once of two times: {refused or trial.refused}")
    if again is None or result is None or not trial.usable:
        return
    finish(again)
    differing = _differing(result, again)
    if differing:
        raise NonConformance(
            f"{trial}: two runs with one seed differ in {_few(differing)}. Draw from "
            "ctx.rng(key), do not iterate over sets, and keep no state in the pass"
        )


def interface_kept(trial: Trial) -> None:
    """Inputs and outputs keep names, order, element types, ranks and sizes; dynamic sizes stay so."""
    result = trial.result
    if result is None:
        return
    for side, specs in (("input", input_specs), ("output", output_specs)):
        before, after = specs(trial.original), specs(result)
        if [s.name for s in before] != [s.name for s in after]:
            raise NonConformance(
                f"{trial}: the {side}s were {', '.join(s.name for s in before)} "
                f"and are now {', '.join(s.name for s in after) or 'none'}"
            )
        for old, new in zip(before, after, strict=True):
            if not _same_port(old, new):
                raise NonConformance(f"{trial}: {side} {old} became {new}")


def well_formed(trial: Trial) -> None:
    """Types and shapes are those of the weights, strict inference agrees, the ONNX checker accepts."""
    result = trial.result
    if result is None:
        return
    if trial.stale:
        raise NonConformance(f"{trial}: {trial.stale[0]}; attar.graph.replace_weight keeps both in step")
    if trial.finish_error is not None:
        raise NonConformance(
            f"{trial}: the result does not fit together: {trial.finish_error}"
        ) from trial.finish_error
    import onnx

    from attar import graph

    try:
        onnx.checker.check_model(graph.to_bytes(result), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NonConformance(f"{trial}: the ONNX checker rejects the result: {error}") from error


def loads_and_runs(trial: Trial) -> None:
    """The runtime loads and runs the result with its optimizations off, at batch sizes that the original
    takes.
    """
    if not trial.usable:
        return
    trial.expected  # noqa: B018  the original must run, or nothing follows from the result
    try:
        trial.outputs  # noqa: B018
    except AttarError as error:
        raise NonConformance(f"{trial}: {error}") from error
    for wanted, got in zip(trial.expected, trial.outputs, strict=True):
        if [y.shape for y in wanted] != [z.shape for z in got] or [y.dtype for y in wanted] != [
            z.dtype for z in got
        ]:
            raise NonConformance(
                f"{trial}: outputs were {_shapes(wanted)} and are now {_shapes(got)} for the same inputs"
            )


def finite_outputs(trial: Trial) -> None:
    """Outputs are finite wherever those of the original are."""
    for output, wanted, got in _pairs(trial):
        if wanted.dtype.kind != "f":
            continue
        lost = np.isfinite(wanted) & ~np.isfinite(got)
        if lost.any():
            raise NonConformance(
                f"{trial}: {int(lost.sum())} of {lost.size} elements of output {output!r} are not finite"
            )


def within_tolerance(trial: Trial) -> None:
    """Outputs differ from the original's by no more than the pass's `tolerance`, if it declares one."""
    if trial.step.tolerance is None:
        return
    allowed = max(trial.step.tolerance, grain(trial.original))
    for output, wanted, got in _pairs(trial):
        difference = relative_difference(wanted, got)
        if difference > allowed:
            raise NonConformance(
                f"{trial}: output {output!r} differs by {difference:.3g} of its largest magnitude; "
                f"the pass declares tolerance={trial.step.tolerance:g}"
                + (f" and the model computes to {allowed:.2g}" if allowed > trial.step.tolerance else "")
            )


def idempotent(trial: Trial) -> None:
    """Applying the pass to its own result changes nothing, if it says that it is idempotent."""
    result = trial.result
    if not trial.step.idempotent or not trial.usable or result is None:
        return
    again, _, crash = trial.attempt(result)
    if crash is not None:
        raise NonConformance(
            f"{trial}: the second application raised {type(crash).__name__}: {crash}"
        ) from crash
    if again is not None:
        finish(again)
        differing = _differing(result, again)
        if differing:
            raise NonConformance(
                f"{trial}: declares idempotent, but a second application changes {_few(differing)}"
            )


MODEL_CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__: check
    for check in (
        declines_by_refused,
        input_untouched,
        deterministic,
        interface_kept,
        well_formed,
        loads_and_runs,
        finite_outputs,
        within_tolerance,
        idempotent,
    )
}


def grain(model: ir.Model) -> float:
    """The relative difference that reordering the arithmetic of `model` may cause without being an error.

    About eight roundings of float32, four of a half type where one is used, two quantization steps of 8 bits
    where activations are quantized: an exact rewrite can push a value over a rounding boundary.
    """
    types = {v.dtype for node in model.graph for v in node.outputs} | {t.dtype for _, _, t in weights(model)}
    found = [1e-6] + [4 * step for kind, step in _EPSILONS.items() if kind in types]
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        found.append(2 / 128)
    return max(found)


def _pairs(trial: Trial) -> list[tuple[str, np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    """(output name, expected, got) for all inputs; empty where an earlier check has failed."""
    if not trial.usable:
        return []
    try:
        outputs = trial.outputs
    except AttarError:
        return []
    names = [spec.name for spec in output_specs(trial.original)]
    runs = zip(trial.expected, outputs, strict=True)
    return [
        (n, y, z)
        for wanted, got in runs
        for n, y, z in zip(names, wanted, got, strict=False)
        if y.shape == z.shape
    ]


def _same_port(old: TensorSpec, new: TensorSpec) -> bool:
    if old.dtype != new.dtype or (old.shape is None) != (new.shape is None):
        return False
    if old.shape is None or new.shape is None:
        return True
    return len(old.shape) == len(new.shape) and all(
        a == b if isinstance(a, int) else not isinstance(b, int)
        for a, b in zip(old.shape, new.shape, strict=True)
    )


def _differing(one: ir.Model, other: ir.Model) -> list[str]:
    left, right = prints(one), prints(other)
    keys = [k for k in left if right.get(k) != left[k]] + [k for k in right if k not in left]
    # The graph's hash covers the weights: name it only where nothing nearer is to blame.
    return [k for k in keys if k != "the graph"] or keys


def _few(things: list[str]) -> str:
    named = [t for t in things if t != "the graph"] or things
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _shapes(arrays: list[np.ndarray]) -> str:  # type: ignore[type-arg]
    return ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
