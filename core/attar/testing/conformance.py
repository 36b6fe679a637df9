"""Checks that every pass must pass, ours and yours.

    @conformance(Channels(ratio=0.3))
    def test_channels(check): ...

runs each check on each model of the zoo as a test of its own. Without pytest,
`check_pass(Channels(ratio=0.3))` runs them all and raises one `NonConformance` that lists every promise
broken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from attar.errors import InputError, did_you_mean
from attar.passes import Pass
from attar.testing.model_checks import MODEL_CHECKS
from attar.testing.pass_checks import PASS_CHECKS
from attar.testing.trial import NonConformance, Setup, Trial
from attar.testing.zoo import ZOO, ZooModel

if TYPE_CHECKING:
    from attar.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Check:
    """One promise, about one pass, on one model of the zoo or (model "") on the pass itself. Call it to check
    it.

    Raises:
        NonConformance: the promise is broken.
    """

    name: str
    step: Pass
    model: str
    run: Callable[[], None]
    what: str = ""

    def __call__(self) -> None:
        self.run()

    def __str__(self) -> str:
        return f"{self.step.name}-{self.name}" + (f"-{self.model}" if self.model else "")


def conformance_checks(
    pass_: Any,
    models: Iterable[str | ZooModel] | None = None,
    registry: Registry | None = None,
    *,
    target: str = "cpu",
    seed: int = 0,
    excused: Mapping[str, str] | None = None,
) -> list[Check]:
    """All checks of one pass, in order. They share the work: the pass runs about twice on each model.

    Args:
        pass_: the pass with the options to test.
        models: names of zoo models or your own `ZooModel`s; all of the zoo if not given.
        registry: where required passes are looked up; the installed plugins if not given.
        target: name of the target that the context shows the pass.
        seed: seed of the context.
        excused: check name (or "check-model") -> reason why this pass is excused from it. Keep it short and
            honest.

    Raises:
        InputError: `pass_` is not a pass, or a model or excused check has an unknown name.
    """
    if not isinstance(pass_, Pass):
        hint = "write conformance(MyPass()), with brackets" if isinstance(pass_, type) else None
        raise InputError(f"{pass_!r} is not a pass", hint=hint)
    if registry is None:
        from attar.registry import default_registry

        registry = default_registry()
    setup = Setup(registry, target, seed)
    trials = [Trial(pass_, zoo, setup) for zoo in _chosen(models)]
    checks = [
        Check(name, pass_, "", _bind(run, pass_, trials), run.__doc__ or "")
        for name, run in PASS_CHECKS.items()
    ]
    checks += [
        Check(name, pass_, trial.zoo.name, _bind(run, trial), run.__doc__ or "")
        for trial in trials
        for name, run in MODEL_CHECKS.items()
    ]
    known = {c.name for c in checks} | {f"{c.name}-{c.model}" for c in checks if c.model}
    for name in excused or {}:
        if name not in known:
            raise InputError(f"excused: there is no check {name!r}", hint=did_you_mean(name, known))
    return [c for c in checks if not {c.name, f"{c.name}-{c.model}"} & set(excused or {})]


def check_pass(
    pass_: Pass,
    models: Iterable[str | ZooModel] | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> int:
    """Run all checks at once; gives their number. Options are those of `conformance_checks`.

    Raises:
        NonConformance: some promise is broken; the message lists all of them.
        InputError: as `conformance_checks`.
    """
    checks = conformance_checks(pass_, models, registry, **options)
    problems = []
    for check in checks:
        try:
            check()
        except NonConformance as problem:
            problems.append(f"[{check.name}] {problem}")
    if problems:
        raise NonConformance(
            f"{pass_} breaks {len(problems)} of {len(checks)} checks:\n" + "\n".join(problems)
        )
    return len(checks)


def conformance(*passes: Pass, **options: Any) -> Callable[[T], T]:
    """Make a pytest test of every check of every pass. Decorates a function or a class.

    The function is called after each check; it may take an argument `check` (a `Check`) and fixtures, and may
    be empty. A class gets a method `test_conformance`. Options are those of `conformance_checks`.

    Raises:
        InputError: as `conformance_checks`, or no pass was given.
    """
    import pytest

    if not passes:
        raise InputError(
            "conformance() needs at least one pass", hint="write @conformance(MyPass(option=...))"
        )
    checks = [check for step in passes for check in conformance_checks(step, **options)]
    # Two settings of one pass would otherwise have equal test names, which pytest numbers beyond recognition.
    names = [step.name for step in passes]
    ids = [str(c) if names.count(c.step.name) == 1 else f"{c}-{passes.index(c.step)}" for c in checks]
    mark = pytest.mark.parametrize("check", checks, ids=ids)

    def decorate(test: T) -> T:
        if inspect.isclass(test):

            def test_conformance(self: Any, check: Check) -> None:
                check()

            setattr(test, "test_conformance", mark(test_conformance))  # noqa: B010  unknown to the type of `test`
            return test
        return mark(_checked(test))  # type: ignore[no-any-return]

    return decorate


def _checked(test: T) -> T:
    """`test`, with the check run before it, whether or not it asks for the argument `check`."""
    signature = inspect.signature(test)
    asks = "check" in signature.parameters

    def run(*args: Any, check: Check, **fixtures: Any) -> Any:
        check()
        return test(*args, **fixtures, **({"check": check} if asks else {}))

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__qualname__ = test.__qualname__
    run.__dict__.update(vars(test))  # marks such as slow
    parameters = list(signature.parameters.values())
    if not asks:
        parameters.append(inspect.Parameter("check", inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def _bind(run: Callable[..., None], *args: Any) -> Callable[[], None]:
    return lambda: run(*args)


def _chosen(models: Iterable[str | ZooModel] | None) -> list[ZooModel]:
    if models is None:
        return list(ZOO.values())
    if isinstance(models, str):
        models = [models]
    chosen = []
    for model in models:
        if isinstance(model, str) and model not in ZOO:
            raise InputError(f"the zoo has no model {model!r}", hint=did_you_mean(model, ZOO))
        chosen.append(ZOO[model] if isinstance(model, str) else model)
    if not chosen:
        raise InputError("no models to check on: `models` is empty")
    return chosen
