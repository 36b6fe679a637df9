"""The conformance kit: the zoo runs, a good pass passes, and every kind of broken pass is caught by name."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from attar import graph
from attar.adapters import Adapter, Loaded
from attar.context import Context
from attar.errors import InputError, Refused
from attar.graph import add_initializer, const_array, replace_weight
from attar.passes import Pass, Range
from attar.registry import Registry
from attar.runtime import OnnxRuntime
from attar.testing import (
    ZOO,
    NonConformance,
    ZooModel,
    adapter_checks,
    check_adapter,
    check_pass,
    conformance,
    conformance_checks,
)
from attar.testing.build import Net
from attar.testing.model_checks import MODEL_CHECKS, grain
from attar.testing.pass_checks import PASS_CHECKS, import_complaint
from attar.testing.trial import relative_difference
from attar.testing.zoo_traps import shared_weight

# -- the zoo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoo", ZOO.values(), ids=ZOO.keys())
def test_zoo_model_is_valid_runs_and_is_the_same_every_time(zoo: ZooModel, tmp_path: Path) -> None:
    model = zoo.build()
    assert zoo.about
    assert model.opset_imports[""] == 21
    onnx.checker.check_model(graph.to_bytes(model), full_check=True)
    assert graph.to_bytes(model) == graph.to_bytes(zoo.build())
    session = OnnxRuntime().open(model, optimize=False)
    for seed, batch in ((0, 1), (1, 3)):
        feeds = zoo.inputs(seed, batch)
        outputs = session.run(feeds)
        for output, value in zip(outputs, model.graph.outputs, strict=True):
            assert value.shape is not None
            assert len(value.shape) == output.ndim
            assert all(
                not isinstance(d, int) or d == n for d, n in zip(value.shape, output.shape, strict=True)
            )
            assert np.isfinite(output.astype(np.float64)).all()
        again = zoo.inputs(seed, batch)
        assert all((feeds[k] == again[k]).all() for k in feeds)


@pytest.mark.parametrize("zoo", ZOO.values(), ids=ZOO.keys())
def test_normal_form_of_a_zoo_model_computes_the_same(zoo: ZooModel) -> None:
    """Against onnx's reference implementation of the model as it was built, where that has the operators."""
    model = zoo.build()
    feeds = zoo.inputs(3)
    expected = onnx.reference.ReferenceEvaluator(onnx.load_from_string(graph.to_bytes(model))).run(
        None, feeds
    )
    graph.normalize(model)
    got = OnnxRuntime().open(model, optimize=False).run(feeds)
    allowed = max(1e-5, grain(zoo.build()))
    for y, z in zip(expected, got, strict=True):
        assert relative_difference(np.asarray(y), z) <= allowed


def test_the_zoo_holds_what_it_says() -> None:
    assert len(shared_weight().graph.initializers["shared.weight"].uses()) == 2
    assert len(ZOO["functions"].build().functions) == 1
    assert all(not n.name for n in ZOO["unnamed_nodes"].build().graph)
    output = ZOO["weight_is_output"].build().graph.outputs[1]
    assert output.is_initializer()
    external = ZOO["external_data"].build().graph.initializers.values()
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in external)
    half = ZOO["half"].build().graph
    assert {v.dtype for v in [*half.inputs, *half.outputs]} == {ir.DataType.FLOAT16}
    assert any(v is None for n in ZOO["empty_optional"].build().graph for v in n.inputs)
    ported = ZOO["weight_is_input"].build().graph
    assert set(ported.initializers) < {v.name for v in ported.inputs}
    inner = [g for g in ZOO["weight_in_if"].build().graphs() if g.name == "else_branch"]
    assert "inner.weight" in inner[0].initializers
    session = OnnxRuntime().open(ZOO["dead_channel"].build())
    assert session is not None
    dead = const_array(ZOO["dead_channel"].build().graph.initializers["conv.weight"])
    assert dead is not None
    assert not dead[2].any()
    assert {n.op_type for n in ZOO["quantized"].build().graph} >= {"QuantizeLinear", "DequantizeLinear"}


def test_both_branches_of_the_if_are_reached() -> None:
    model = ZOO["weight_in_if"].build()
    branch = next(n for n in model.graph if n.op_type == "If").inputs[0]
    model.graph.outputs.append(branch)
    session = OnnxRuntime().open(model, optimize=False)
    taken = {bool(session.run(ZOO["weight_in_if"].inputs(seed))[-1].squeeze()) for seed in (1, 2, 3, 4, 5)}
    assert taken == {True, False}


# -- a good pass ---------------------------------------------------------------------------------------------


def matrices(model: ir.Model) -> list[ir.Value]:
    """Float weights of rank 2 and more that are not outputs."""
    return [
        v
        for g in model.graphs()
        for v in g.initializers.values()
        if v.dtype == ir.DataType.FLOAT
        and v.shape is not None
        and len(v.shape) >= 2
        and not v.is_graph_output()
    ]


class Nudge(Pass, name="good.nudge"):
    """Set the lowest bits of weights to zero."""

    idempotent = True
    tolerance = 1e-3

    bits: Annotated[int, Range(1, 12)] = 6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            mask = np.uint32(0xFFFFFFFF << self.bits & 0xFFFFFFFF)
            replace_weight(value, (weight.view(np.uint32) & mask).view(np.float32))


@conformance(Nudge())
def test_a_good_pass_conforms() -> None:
    pass


class TestOfAClass:
    def test_other(self) -> None:
        pass


def test_a_class_gets_a_test_method() -> None:
    decorated = conformance(Nudge(), models=["mlp"])(TestOfAClass)
    assert decorated is TestOfAClass
    (mark,) = decorated.test_conformance.pytestmark  # type: ignore[attr-defined]
    checks = mark.args[1]
    assert [c.name for c in checks] == [*PASS_CHECKS, *MODEL_CHECKS]
    for check in checks:
        decorated().test_conformance(check)  # type: ignore[attr-defined]
    del TestOfAClass.test_conformance  # type: ignore[attr-defined]


def test_checks_are_named_one_by_one() -> None:
    checks = conformance_checks(Nudge(), models=["mlp", "half"])
    names = [str(c) for c in checks]
    assert len(set(names)) == len(names) == len(PASS_CHECKS) + 2 * len(MODEL_CHECKS)
    assert "good.nudge-interface_kept-mlp" in names
    assert all(c.what for c in checks)
    assert check_pass(Nudge(), ["mlp", "half"]) == len(checks)


# -- bad passes ----------------------------------------------------------------------------------------------


class InPlace(Pass, name="bad.in_place"):
    """Writes into the tensor that the clone shares with the caller."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            assert value.const_value is not None
            array = value.const_value.numpy()
            if array.flags.writeable:
                array *= 1.01


class Renames(Pass, name="bad.renames"):
    """Renames an output."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        model.graph.outputs[0].name = "renamed"


class Global(Pass, name="bad.global_random"):
    """Draws from numpy's global generator."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(
                value, weight + np.float32(1e-4) * np.random.rand(*weight.shape).astype(np.float32)
            )


class Unseeded(Pass, name="bad.unseeded"):
    """Draws from a generator of its own without a seed."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        noise = np.random.default_rng()
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(value, weight + np.float32(1e-4) * noise.random(weight.shape, np.float32))


class NotANumber(Pass, name="bad.nan"):
    """Divides zero by zero."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(value, np.full_like(weight, np.nan))


class Raises(Pass, name="bad.raises"):
    """Raises what is not Refused."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        raise ValueError("there is no layer like that")


class ChangesDtype(Pass, name="bad.dtype"):
    """Makes an output double."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        old = model.graph.outputs[0]
        cast = ir.node("Cast", [old], {"to": ir.DataType.DOUBLE.value}, num_outputs=1)
        old.name, name = f"{old.name}_inner", old.name
        new = cast.outputs[0]
        new.name, new.type, new.shape = name, ir.TensorType(ir.DataType.DOUBLE), old.shape
        model.graph.append(cast)
        model.graph.outputs[0] = new


class StaleShape(Pass, name="bad.stale_shape"):
    """Gives a weight another size and leaves the value's shape as it was."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            value.const_value = ir.tensor(np.concatenate([weight, weight]), name=value.name)


class FixesBatch(Pass, name="bad.fixes_batch"):
    """Makes the batch a number."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in model.graph.inputs:
            assert value.shape is not None
            value.shape = ir.Shape([2, *value.shape[1:]])


class TooFar(Pass, name="bad.too_far"):
    """Promises more than it keeps."""

    tolerance = 1e-6

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(value, weight * np.float32(1.01))


class NotIdempotent(Pass, name="bad.not_idempotent"):
    """Says that twice is once."""

    idempotent = True

    def apply(self, model: ir.Model, ctx: Context) -> None:
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(value, weight * np.float32(0.5))


class Invalid(Pass, name="bad.invalid"):
    """Adds an operator that does not exist, where the output is read."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        first = next(iter(model.graph))
        first.op_type = "NoSuchOperator"


class KeepsState(Pass, name="bad.keeps_state"):
    """Does something else the second time."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        seen = self.__dict__.setdefault("_seen", [])
        seen.append(1)
        add = np.float32(len(seen))
        for value in matrices(model):
            weight = const_array(value)
            assert weight is not None
            replace_weight(value, weight + add)


class SilentRefusal(Pass, name="bad.silent_refusal"):
    """Declines without a word."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        raise Refused(" ")


class Nothing(Pass, name="bad.nothing"):
    """Does nothing anywhere."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        return


class Always(Pass, name="bad.always_refuses"):
    """Declines always, with a reason."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        raise Refused("not today")


class NoDocstring(Pass, name="bad.no_docstring"):
    def apply(self, model: ir.Model, ctx: Context) -> None:
        Nudge().apply(model, ctx)


class ForgetsOptions(Pass, name="bad.forgets_options"):
    """Leaves an option out of its dictionary."""

    size: int = 1

    def apply(self, model: ir.Model, ctx: Context) -> None:
        Nudge().apply(model, ctx)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


class NeedsTheUnknown(Pass, name="bad.needs"):
    """Needs what nobody can give."""

    needs = ("luck",)

    def apply(self, model: ir.Model, ctx: Context) -> None:
        Nudge().apply(model, ctx)


class ChangesOptions(Pass, name="bad.changes_options"):
    """Writes to itself."""

    size: int = 1

    def apply(self, model: ir.Model, ctx: Context) -> None:
        Nudge().apply(model, ctx)
        object.__setattr__(self, "size", 2)


BROKEN: dict[type[Pass], tuple[str, str]] = {
    InPlace: ("input_untouched", r"changed weight 'layer\d\.weight'.* of the caller's model.*replace_weight"),
    Renames: ("interface_kept", "the outputs were logits and are now renamed"),
    Global: ("deterministic", r"global random generator; draw from ctx\.rng"),
    Unseeded: ("deterministic", r"two runs with one seed differ in weight 'layer\d\.weight'"),
    NotANumber: ("finite_outputs", r"8 of 8 elements of output 'logits' are not finite"),
    Raises: (
        "declines_by_refused",
        r"ValueError: there is no layer like that \(.*test_conformance\.py:\d+\)",
    ),
    ChangesDtype: ("interface_kept", r"output logits: float32\[N, 4\] became logits: float64\[N, 4\]"),
    StaleShape: ("well_formed", r"has shape \[64, 20\], but its value still says \[32, 20\]"),
    FixesBatch: ("interface_kept", r"input features: float32\[N, 20\] became features: float32\[2, 20\]"),
    TooFar: ("within_tolerance", r"output 'logits' differs by 0\.0\d+ .* declares tolerance=1e-06"),
    NotIdempotent: ("idempotent", "declares idempotent, but a second application changes weight"),
    Invalid: ("well_formed", "NoSuchOperator"),
    KeepsState: ("deterministic", "differ in weight"),
    SilentRefusal: ("declines_by_refused", "refused without a reason"),
    Nothing: ("acts_somewhere", "changed none of 1 models.*nothing changed"),
    Always: ("acts_somewhere", "changed none of 1 models.*not today"),
    NoDocstring: ("declared", "the class has no docstring"),
    NeedsTheUnknown: ("declared", "needs luck; known are calibration, evaluate and training"),
    ForgetsOptions: ("options_round_trip", r"comes back from from_dict\(to_dict\(\)\) as"),
    ChangesOptions: ("deterministic", "changed the options"),
}


def build(cls: type[Pass]) -> Pass:
    return cls(size=3) if cls is ForgetsOptions else cls()  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", BROKEN, ids=lambda c: c.name)
def test_a_broken_pass_is_caught_by_the_right_check(cls: type[Pass]) -> None:
    wanted, message = BROKEN[cls]
    failed = {}
    for check in conformance_checks(build(cls), models=["mlp"]):
        try:
            check()
        except NonConformance as problem:
            failed[check.name] = str(problem).replace("\n", " ")
    assert wanted in failed, failed
    assert cls.name in failed[wanted]
    assert re.search(message, failed[wanted]), failed[wanted]
    with pytest.raises(NonConformance, match=rf"\[{wanted}\]"):
        check_pass(build(cls), ["mlp"])


def test_one_fault_does_not_set_off_every_check() -> None:
    """A reader should see the cause: what a broken pass is not guilty of stays quiet."""
    for cls, (wanted, _) in BROKEN.items():
        if cls in (
            Raises,
            SilentRefusal,
            Always,
            Nothing,
            NoDocstring,
            ForgetsOptions,
            ChangesOptions,
            Global,
        ):
            bad = []
            for check in conformance_checks(build(cls), models=["mlp"]):
                try:
                    check()
                except NonConformance:
                    bad.append(check.name)
            assert set(bad) - {"acts_somewhere", "declined"} <= {wanted, "options_round_trip"}, (cls, bad)


def test_every_check_is_shown_to_fail() -> None:
    shown = {check for check, _ in BROKEN.values()}
    assert {*PASS_CHECKS, *MODEL_CHECKS} - shown == {"loads_and_runs", "imports_are_light"}  # below


class Unrunnable(Pass, name="bad.unrunnable"):
    """Valid ONNX that computes something only for the sizes it was tried with."""

    def apply(self, model: ir.Model, ctx: Context) -> None:
        first = next(iter(model.graph))
        value = first.inputs[0]
        assert value is not None
        fixed = add_initializer(model.graph, "fixed", np.array([2, 20], np.int64))
        shaped = ir.node("Reshape", [value, fixed], num_outputs=1)
        model.graph.insert_before(first, shaped)
        first.replace_input_with(0, shaped.outputs[0])


def test_a_result_that_runs_only_at_one_batch_size_is_caught() -> None:
    checks = {c.name: c for c in conformance_checks(Unrunnable(), models=["mlp"])}
    with pytest.raises(NonConformance, match=r"bad\.unrunnable"):
        checks["loads_and_runs"]()


def test_heavy_imports_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
        from attar.passes import Pass

        class Heavy(Pass, name="heavy.pass_"):
            """Loads an image library on import."""

            def apply(self, model, ctx):
                pass
    '''
    for name, first in (
        ("heavy_module", "import PIL.Image"),
        ("loud_module", "print('hello')"),
        ("light_module", ""),
    ):
        (tmp_path / f"{name}.py").write_text(first + "\n" + textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_complaint("light_module") is None
    assert "prints 'hello'" in (import_complaint("loud_module") or "")
    assert "fails" in (import_complaint("no_such_module") or "")
    import heavy_module  # type: ignore[import-not-found]

    checks = {c.name: c for c in conformance_checks(heavy_module.Heavy(), models=["mlp"])}
    with pytest.raises(NonConformance, match="loads PIL; import them inside"):
        checks["imports_are_light"]()


# -- the kit's own manners -----------------------------------------------------------------------------------


def test_unknown_names_and_wrong_things_are_refused() -> None:
    with pytest.raises(InputError, match=r"did you mean .*'mlp'"):
        conformance_checks(Nudge(), models=["mlpp"])
    with pytest.raises(InputError, match="brackets"):
        conformance_checks(Nudge)
    with pytest.raises(InputError, match="empty"):
        conformance_checks(Nudge(), models=[])
    with pytest.raises(InputError, match="at least one pass"):
        conformance()
    with pytest.raises(InputError, match="did you mean 'idempotent'"):
        conformance_checks(Nudge(), excused={"idempotnt": "?"})


def test_a_pass_can_be_excused_from_one_check_of_one_model() -> None:
    everything = {str(c) for c in conformance_checks(TooFar(), models=["mlp", "half"])}
    less = {
        str(c)
        for c in conformance_checks(TooFar(), ["mlp", "half"], excused={"within_tolerance-mlp": "lossy"})
    }
    assert everything - less == {"bad.too_far-within_tolerance-mlp"}


def test_own_models_can_be_checked() -> None:
    def tiny() -> ir.Model:
        """Two numbers in, one out."""
        net = Net("tiny", 1)
        return net.model(y=net.dense(net.input("x", "N", 2), 2, 1))

    zoo = ZooModel("tiny", tiny, lambda rng, n: {"x": rng.random((n, 2), np.float32)}, frozenset({"dense"}))
    assert check_pass(Nudge(), [zoo]) == len(PASS_CHECKS) + len(MODEL_CHECKS)


def test_required_passes_run_first() -> None:
    class Needs(Pass, name="good.needs"):
        """Wants weights that were nudged."""

        requires = ("good.nudge",)
        tolerance = 1e-3

        def apply(self, model: ir.Model, ctx: Context) -> None:
            for value in matrices(model):
                weight = const_array(value)
                assert weight is not None
                assert not (weight.view(np.uint32) & 63).any()
                replace_weight(value, (weight.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32))

    class Plugin:
        from attar.hooks import hookimpl

        @hookimpl
        def attar_passes(self) -> list[type[Pass]]:
            return [Nudge]

    registry = Registry()
    registry.register(Plugin(), name="p")
    check_pass(Needs(), ["mlp", "attention"], registry)


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]
    check_pass(Nudge(), ["mlp"])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # type: ignore[index,union-attr]


def test_calibration_and_evaluation_are_there_for_passes_that_need_them() -> None:
    class Asks(Pass, name="good.asks"):
        """Uses everything that a context offers."""

        needs = ("calibration", "evaluate")

        def apply(self, model: ir.Model, ctx: Context) -> None:
            total = sum(batch.size for batch in ctx.calibration)
            score = ctx.evaluate.run(ctx.runtime.open(model))
            assert total == 8
            assert score == pytest.approx(1, abs=1e-5)
            Nudge().apply(model, ctx)

    check_pass(Asks(), ["mlp", "encoder"])


def test_relative_difference() -> None:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert relative_difference(zeros, zeros) == 0
    assert relative_difference(zeros, ones) == 1  # absolute, where the reference is zero
    assert relative_difference(4 * ones, 3 * ones) == 0.25
    assert relative_difference(ones, np.ones(4, np.float32)) == np.inf
    assert relative_difference(ones, np.array([1, np.nan, 1], np.float32)) == np.inf
    spoilt = np.array([1, np.inf, np.nan], np.float32)
    assert relative_difference(spoilt, spoilt) == 0
    assert relative_difference(np.zeros(0), np.zeros(0)) == 0


def test_collected_by_pytest_as_separate_tests(tmp_path: Path) -> None:
    """A stranger's test file: a broken pass fails in its own test with the reason, and nothing else fails."""
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            '''
            import numpy as np
            from attar.graph import replace_weight
            from attar.passes import Pass
            from attar.testing import conformance

            class Blow(Pass, name="test.blow"):
                """Multiplies weights by too much."""

                tolerance = 0.1

                def apply(self, model, ctx):
                    for value in model.graph.initializers.values():
                        if len(value.shape) == 2:
                            replace_weight(value, value.const_value.numpy() * np.float32(3))

            @conformance(Blow(), models=["mlp", "unnamed_nodes"])
            def test_blow(check, tmp_path):
                assert check.step == Blow()
                assert tmp_path.is_dir()
            '''
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    total = len(PASS_CHECKS) + 2 * len(MODEL_CHECKS)
    assert f"2 failed, {total - 2} passed" in done.stdout, done.stdout + done.stderr
    assert "test_it.py::test_blow[test.blow-within_tolerance-mlp]" in done.stdout
    assert "declares tolerance=0.1" in done.stdout


# -- adapters ------------------------------------------------------------------------------------------------


class Linear:
    """The network of a framework that there is not."""

    def __init__(self) -> None:
        self.weight = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.asarray(x @ self.weight.T)


class LinearAdapter(Adapter):
    """Reads `Linear`; the faults are switches."""

    name = "linear"
    suffixes = (".linear",)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def recognises(self, source: Any) -> bool:
        return self.fault == "greedy" or isinstance(source, Linear) or super().recognises(source)

    def load(self, source: Any, *, inputs: Any = None, **options: Any) -> Loaded:
        if not isinstance(source, Linear):
            if self.fault == "bad source":
                raise FileNotFoundError(source)
            raise InputError(f"cannot read {source!r}")
        if inputs is not None and self.fault != "bad inputs":
            if not isinstance(inputs, np.ndarray):
                raise InputError("inputs are not an array")
            if inputs.ndim != 2:
                raise InputError(f"inputs have rank {inputs.ndim}, not 2")
        net = Net("linear")
        x = net.input("x", "N", 3)
        weight = source.weight.T * (1.001 if self.fault == "wrong" else 1)
        value = net.const(weight.astype(np.float32), "weight")
        if self.fault == "aliased":
            value.const_value = ir.tensor(source.weight.reshape(3, 4), name="weight")
            source.forward = lambda x: x @ source.weight.reshape(3, 4)  # type: ignore[method-assign]
        model = net.model(y=net.op("MatMul", x, value))
        if self.fault == "changing":
            model.doc_string = str(random.random())
        return Loaded(model, lambda feeds: [source.forward(feeds["x"])])


EXAMPLE = np.ones((2, 3), np.float32)


def test_a_good_adapter_conforms() -> None:
    assert check_adapter(LinearAdapter(), Linear(), EXAMPLE) == len(adapter_checks(LinearAdapter(), Linear()))


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("greedy", "recognises", "claims to read"),
        ("wrong", "faithful", r"output 'y' differs from the framework's by 0\.001"),
        ("aliased", "copies_parameters", "copy parameters"),
        ("bad source", "bad_source", r"a file \(missing, \.linear\): raised FileNotFoundError"),
        ("bad inputs", "bad_inputs", "inputs of rank 9 was accepted in silence"),
        ("changing", "same_twice", "twice gives different models"),
    ],
)
def test_a_broken_adapter_is_caught(fault: str, check: str, message: str) -> None:
    adapter, source = LinearAdapter(fault), Linear()
    kept = source.weight.copy()
    failed = {}
    for name, run in adapter_checks(adapter, source, EXAMPLE).items():
        try:
            run()
        except NonConformance as problem:
            failed[name] = problem
    assert list(failed) == [check]
    assert (source.weight == kept).all(), "the check puts back what it overwrote"
    with pytest.raises(NonConformance, match=message):
        check_adapter(adapter, source, EXAMPLE)


def test_an_adapter_that_imports_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eager_adapter.py").write_text(
        textwrap.dedent(
            """
            from attar.adapters import Adapter

            class Eager(Adapter):
                name = "eager"

                def recognises(self, source):
                    import PIL.Image
                    return isinstance(source, PIL.Image.Image)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import eager_adapter  # type: ignore[import-not-found]

    with pytest.raises(NonConformance, match="loads PIL"):
        adapter_checks(eager_adapter.Eager(), None)["recognises_without_importing"]()
