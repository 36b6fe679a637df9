"""What a pass promises of itself: how it is declared, how its options travel, what importing it costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attar.errors import AttarError, RecipeError
from attar.passes import Pass
from attar.testing.trial import NonConformance, Trial, prints

HEAVY = ("torch", "tensorflow", "keras", "mxnet", "jax", "paddle", "transformers", "onnxscript", "networkx",
"PIL",
         "rich", "jinja2", "matplotlib", "pandas")  # fmt: skip


def declared(step: Pass, trials: Sequence[Trial]) -> None:
    """The pass has a name `family.verb`, a docstring, an `apply` of its own, and a sensible tolerance."""
    cls = type(step)
    if not cls.name:
        raise NonConformance(
            f'{cls.__name__} has no name; write class {cls.__name__}(Pass, name="family.verb")'
        )
    if cls.apply is Pass.apply:
        raise NonConformance(f"{cls.name}: apply() is not defined")
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):  # dataclasses write that one
        raise NonConformance(
            f"{cls.name}: the class has no docstring; its first line is the help text of the pass"
        )
    odd = set(cls.needs) - {"calibration", "evaluate", "training"}
    if odd:
        raise NonConformance(
            f"{cls.name}: needs {', '.join(sorted(odd))}; known are calibration, evaluate and training"
        )
    if cls.tolerance is not None and not cls.tolerance >= 0:
        raise NonConformance(f"{cls.name}: tolerance is {cls.tolerance!r}, not a number from 0 up, or None")


def options_round_trip(step: Pass, trials: Sequence[Trial]) -> None:
    """Options survive `to_dict`, JSON and a TOML recipe; an unknown option is a `RecipeError`."""
    from attar.hooks import hookimpl
    from attar.recipe import dump_recipe, load_recipe
    from attar.registry import Registry

    class Bring:
        @hookimpl
        def attar_passes(self) -> list[type[Pass]]:
            return [type(step)]

    alone = Registry()
    alone.register(Bring(), name="conformance")

    def by_toml() -> Pass:
        (back,) = load_recipe(dump_recipe([step]), alone)
        return back

    ways: dict[str, Callable[[], Pass]] = {
        "from_dict(to_dict())": lambda: type(step).from_dict(step.to_dict()),
        "JSON": lambda: type(step).from_dict(json.loads(json.dumps(step.to_dict()))),
        "a TOML recipe": by_toml,
    }
    for way, there_and_back in ways.items():
        try:
            back = there_and_back()
        except (AttarError, TypeError, ValueError) as error:
            raise NonConformance(f"{step} does not survive {way}: {error}") from error
        if back != step or hash(back) != hash(step):
            raise NonConformance(f"{step} comes back from {way} as {back}")
    try:
        type(step).from_dict({**step.to_dict(), "no_such_option": 1})
    except RecipeError:
        return
    raise NonConformance(f"{step.name} takes an unknown option in silence")


def imports_are_light(step: Pass, trials: Sequence[Trial]) -> None:
    """Importing the module of the pass prints nothing and loads no framework or other heavy package.

    A pass defined in a test file or in `__main__` is not looked at: such files import what they like.
    """
    module = type(step).__module__
    spec = importlib.util.find_spec(module) if module != "__main__" else None
    if spec is None or Path(spec.origin or "").name.startswith(("test_", "conftest")):
        return
    complaint = import_complaint(module)
    if complaint:
        raise NonConformance(f"{step.name}: {complaint}")


def import_complaint(module: str, then: str = "") -> str | None:
    """What importing `module` (and running `then`) in a new interpreter does that it should not, or None."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import importlib; "
        f"module = importlib.import_module({module!r})\n{then}\n"
        f"print('', *[m for m in {HEAVY!r} if m in sys.modules], sep='\\n\\0')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        return f"importing {module} in a new interpreter fails: {done.stderr.strip()[-500:]}"
    printed, *heavy = done.stdout.rstrip("\n").split("\n\0")
    if heavy:
        return f"importing {module} loads {', '.join(heavy)}; import them inside the functions that use them"
    if printed.strip():
        return f"importing {module} prints {printed.strip()[:200]!r}"
    return None


def acts_somewhere(step: Pass, trials: Sequence[Trial]) -> None:
    """The pass changes at least one of the models; one that always declines passes every other check."""
    reasons = []
    for trial in trials:
        if trial.result is not None and prints(trial.result) != prints(trial.original):
            return
        reasons.append(f"\n  {trial.zoo.name}: {trial.refused or trial.crash or 'nothing changed'}")
    raise NonConformance(
        f"{step} changed none of {len(trials)} models, so nothing was tested; give models= that it acts on"
        + "".join(reasons[:5])
    )


PASS_CHECKS: dict[str, Callable[[Pass, Sequence[Trial]], None]] = {
    check.__name__: check for check in (declared, options_round_trip, imports_are_light, acts_somewhere)
}
