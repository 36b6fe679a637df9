"""The registry: plugins found by entry points, broken ones kept aside, names owned once."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attar.adapters import Adapter
from attar.errors import InputError, PluginError, RecipeError
from attar.hooks import hookimpl
from attar.passes import Pass
from attar.registry import PluginInfo, Registry, default_registry
from attar.targets import Target


class One(Pass, name="one.act"):
    """First."""


class Two(Pass, name="two.act"):
    """Second."""


class Bring:
    """A plugin that brings these passes."""

    def __init__(self, *passes: Any) -> None:
        self.brought = list(passes)

    @hookimpl
    def attar_passes(self) -> list[Any]:
        return self.brought


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution of one module with one entry point, as pip would leave it on disk."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def make(distribution: str, entry: str, source: str, *, module: str = "", value: str = "") -> None:
        module = module or distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[attar]\n{entry} = {value or module}\n")
        modules.append(module)

    yield make
    for module in modules:
        sys.modules.pop(module, None)


GOOD = '''
    from attar.hooks import hookimpl
    from attar.passes import Pass

    class Act(Pass, name="{family}.act"):
        """Acts."""

    @hookimpl
    def attar_passes():
        return [Act]
'''


def test_installed_plugins_are_found_with_their_distribution(install: Install) -> None:
    install("zz-good", "zzgood", GOOD.format(family="zzgood"))
    registry = Registry.discover()
    assert PluginInfo("zzgood", "zz-good", "1.5") in registry.plugins
    assert "zzgood.act" in registry.passes
    assert registry.get_pass("zzgood.act").name == "zzgood.act"


@pytest.mark.parametrize(
    ("source", "value", "kind", "words"),
    [
        ("import no_such_package_at_all", "", ModuleNotFoundError, "no_such_package_at_all"),
        ("def broken(:", "", SyntaxError, "invalid syntax"),
        ("x = 1", "zz_bad:missing", AttributeError, "missing"),
        ("raise SystemExit(3)", "", PluginError, "ends the program"),
        ("1 / 0", "", ZeroDivisionError, "division"),
        (
            "from attar.hooks import hookimpl\n@hookimpl\ndef attar_pases(): return []",
            "",
            PluginError,
            "attar_pases",
        ),
    ],
)
def test_a_broken_plugin_is_kept_with_its_error_and_does_not_stop_the_others(
    install: Install, source: str, value: str, kind: type[Exception], words: str
) -> None:
    install("zz-bad", "zzbad", source, value=value)
    install("zz-good", "zzgood", GOOD.format(family="zzgood"))
    registry = Registry.discover()
    assert isinstance(registry.broken["zzbad"], kind)
    assert words in str(registry.broken["zzbad"])
    assert "zzbad" not in {p.name for p in registry.plugins}
    assert "zzgood.act" in registry.passes


def test_disabled_plugins_are_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("zz-good", "zzgood", GOOD.format(family="zzgood"))
    install("zz-bad", "zzbad", "raise AssertionError('imported')")
    monkeypatch.setenv("ATTAR_DISABLED_PLUGINS", " zzbad , zzgood,nobody")
    registry = Registry.discover()
    assert not {"zzgood", "zzbad"} & ({p.name for p in registry.plugins} | set(registry.broken))
    assert "zz_bad" not in sys.modules


def test_two_distributions_with_one_plugin_name(install: Install) -> None:
    install("zz-first", "zzsame", GOOD.format(family="zzfirst"), module="zz_a")
    install("zz-second", "zzsame", GOOD.format(family="zzsecond"), module="zz_b")
    registry = Registry.discover()
    assert ("zzfirst.act" in registry.passes, "zzsecond.act" in registry.passes) == (True, False)
    problem = str(registry.broken["zzsame (zz-second)"])
    assert "zz-first" in problem
    assert "zz-second" in problem


def test_two_distributions_with_one_pass_name() -> None:
    registry = Registry()
    registry.register(Bring(One), name="a", distribution="attar-a")
    registry.register(
        Bring(Two, type("Other", (Pass,), {}, name="one.act")), name="b", distribution="attar-b"
    )
    with pytest.raises(
        PluginError, match=r"'one\.act' .*a \(attar-a\) and b \(attar-b\)[\s\S]*ATTAR_DISABLED_PLUGINS"
    ):
        _ = registry.passes
    registry.unregister("b")
    assert list(registry.passes) == ["one.act"]


def test_one_plugin_that_brings_a_name_twice() -> None:
    registry = Registry()
    registry.register(
        Bring(One, type("Other", (Pass,), {}, name="one.act")), name="a", distribution="attar-a"
    )
    with pytest.raises(PluginError, match=r"'one\.act' .*a \(attar-a\) and a \(attar-a\)"):
        _ = registry.passes


def test_a_builtin_name_cannot_be_taken() -> None:
    class Targets:
        @hookimpl
        def attar_targets(self) -> list[Target]:
            return [Target("cpu", "mine")]

    registry = Registry()
    registry.register(Targets(), name="mine", distribution="attar-mine")
    with pytest.raises(PluginError, match=r"'cpu' .*both attar and mine \(attar-mine\)"):
        _ = registry.targets


def test_names_come_sorted_whatever_the_order_of_registration() -> None:
    answers = []
    for order in ((One, Two), (Two, One)):
        registry = Registry()
        for step in order:
            registry.register(Bring(step), name=step.name.replace(".", "_"))
        answers.append(list(registry.passes))
    assert answers == [["one.act", "two.act"]] * 2


def test_answers_are_kept_until_plugins_change() -> None:
    registry = Registry()
    registry.register(Bring(One), name="a")
    assert registry.passes is registry.passes
    assert list(registry.passes) == ["one.act"]
    registry.register(Bring(Two), name="b")
    assert list(registry.passes) == ["one.act", "two.act"]
    registry.unregister("a")
    assert list(registry.passes) == ["two.act"]
    assert [p.name for p in registry.plugins] == ["b"]


@pytest.mark.parametrize(
    "answer", [[object()], 3, [type("NoName", (Pass,), {})], {"a": 1}, "ab"], ids=lambda a: str(a)[:20]
)
def test_an_answer_of_the_wrong_form_breaks_its_plugin_only(answer: Any) -> None:
    class Wrong:
        @hookimpl
        def attar_passes(self) -> Any:
            return answer

    registry = Registry()
    registry.register(Wrong(), name="wrong", distribution="attar-wrong")
    registry.register(Bring(One), name="good")
    assert list(registry.passes) == ["one.act"]
    assert isinstance(registry.broken["wrong"], PluginError)
    assert "attar-wrong" in str(registry.broken["wrong"])
    assert "attar_passes gave" in str(registry.broken["wrong"])


def test_a_hook_that_raises_breaks_its_plugin_only() -> None:
    class Raising:
        @hookimpl
        def attar_passes(self) -> Any:
            raise OSError("disk on fire")

    registry = Registry()
    registry.register(Raising(), name="raising")
    registry.register(Bring(One), name="good")
    assert list(registry.passes) == ["one.act"]
    assert "disk on fire" in str(registry.broken["raising"])


def test_a_hook_may_answer_none() -> None:
    class Silent:
        @hookimpl
        def attar_passes(self) -> None:
            return None

    registry = Registry()
    registry.register(Silent(), name="silent")
    assert registry.passes == {}
    assert registry.broken == {}


def test_names_of_plugins_are_unique_and_known() -> None:
    registry = Registry()
    registry.register(Bring(One), name="a", distribution="attar-a")
    with pytest.raises(PluginError, match="'a' is taken by attar-a and claimed again by attar-b"):
        registry.register(Bring(Two), name="a", distribution="attar-b")
    with pytest.raises(PluginError, match=r"no plugin 'aa' is registered\n.*did you mean 'a'"):
        registry.unregister("aa")


def test_unknown_names_get_suggestions() -> None:
    class Named(Adapter):
        name = "torch"

    class Plugin(Bring):
        @hookimpl
        def attar_adapters(self) -> list[Adapter]:
            return [Named()]

    registry = Registry()
    registry.register(Plugin(One), name="a")
    with pytest.raises(RecipeError, match=r"unknown pass 'one\.akt'\n.*'one\.act'"):
        registry.get_pass("one.akt")
    with pytest.raises(InputError, match=r"unknown target 'cpuu'\n.*'cpu'"):
        registry.get_target("cpuu")
    with pytest.raises(InputError, match=r"unknown framework 'troch'\n.*'torch'"):
        registry.get_adapter("troch")
    assert registry.get_adapter("torch").name == "torch"


def test_registries_are_independent_and_the_default_is_one() -> None:
    one, other = Registry(), Registry()
    one.register(Bring(One), name="a")
    assert other.plugins == ()
    assert default_registry() is default_registry()
    assert default_registry().broken == {}
