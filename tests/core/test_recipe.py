"""Recipes: every form in, TOML out and back, and errors that say where."""

from __future__ import annotations

import contextlib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attar.recipe
from attar.errors import AttarError, InputError, RecipeError
from attar.hooks import hookimpl
from attar.passes import Choice, Pass, Range
from attar.recipe import dump_recipe, load_recipe
from attar.registry import Registry


class Everything(Pass, name="probe.everything"):
    """Has an option of every type that a recipe can say."""

    text: str = "a"
    number: float = 0.5
    count: int = 3
    flag: bool = False
    words: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    ratios: tuple[float, ...] = ()
    flags: tuple[bool, ...] = ()
    maybe: float | None = None
    free: Any = 0


class Prune(Pass, name="probe.prune"):
    ratio: Annotated[float, Range(0.0, 0.95)] = 0.5
    kind: Annotated[str, Choice("l1", "l2")] = "l1"
    limit: int | None = 7


class Needs(Pass, name="probe.needs"):
    ratio: float


class Picky(Pass, name="probe.picky"):
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise ValueError("low must be below high")


class Static(Pass, name="quantize.static"):
    bits: int = 8


class Inference(Pass, name="fuse.inference"):
    pass


class Kernels(Pass, name="fuse.kernels"):
    pass


class Plugin:
    @hookimpl
    def attar_passes(self) -> list[type[Pass]]:
        return [Everything, Prune, Needs, Picky, Static, Inference, Kernels]


def make_registry() -> Registry:
    made = Registry()
    made.register(Plugin(), name="probe")
    return made


REGISTRY = make_registry()

floats = st.floats(allow_nan=False, allow_infinity=False)
ints = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.one_of(texts, ints, floats, st.booleans())
everything = st.builds(
    Everything,
    text=texts,
    number=floats,
    count=ints,
    flag=st.booleans(),
    words=st.lists(texts, max_size=3),
    sizes=st.lists(ints, max_size=3),
    ratios=st.lists(floats, max_size=3),
    flags=st.lists(st.booleans(), max_size=3),
    maybe=st.none() | floats,
    free=st.one_of(scalars, st.lists(scalars, max_size=3)),
)


def exact(step: Pass) -> str:
    """Tells 1 from 1.0 and 0.0 from -0.0, which == does not."""
    return repr(step)


@given(st.lists(everything, max_size=3))
def test_what_is_dumped_is_loaded_back_exactly(passes: list[Pass]) -> None:
    text = dump_recipe(passes)
    assert [exact(p) for p in load_recipe(text, REGISTRY)] == [exact(p) for p in passes]


@pytest.mark.parametrize(
    "text",
    [
        '"quoted"',
        "back\\slash",
        "tab\tnewline\ncr\rff\fbs\b",
        "\x00\x01\x1f\x7f",
        "\u2028ü漢😀",
        "'",
        "",
        " ",
        "# no",
    ],
)
def test_strings_are_escaped_as_toml_wants(text: str) -> None:
    dumped = dump_recipe([Everything(text=text, words=(text, text))])
    table = tomllib.loads(dumped)["pass"][0]
    assert table["text"] == text
    assert table["words"] == [text, text]


def test_the_dump_is_the_documented_form() -> None:
    assert dump_recipe([Static(), Prune(ratio=1e-7, limit=4)]) == (
        '[[pass]]\nname = "quantize.static"\nbits = 8\n'
        '\n[[pass]]\nname = "probe.prune"\nratio = 1e-07\nkind = "l1"\nlimit = 4\n'
    )


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 2**63, -(2**63) - 1, "\ud800", {"a": 1}, [None]]
)
def test_what_toml_cannot_say_is_refused_by_name(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"step 2, probe\.everything, option 'free'"):
        dump_recipe([Static(), Everything(free=value)])


def test_none_is_left_out_only_where_leaving_it_out_means_none() -> None:
    assert "maybe" not in dump_recipe([Everything(maybe=None)])
    with pytest.raises(RecipeError, match=r"option 'limit'.*null"):
        dump_recipe([Prune(limit=None)])


def test_a_dump_of_something_else_is_refused() -> None:
    class Nameless(Pass):
        pass

    with pytest.raises(RecipeError, match="step 1: 'fuse' is not a pass"):
        dump_recipe(["fuse"])  # type: ignore[list-item]
    with pytest.raises(RecipeError, match="Nameless has no name"):
        dump_recipe([Nameless()])


def test_every_form_of_a_recipe_gives_the_same_passes(tmp_path: Path) -> None:
    expected = (Inference(), Kernels(), Static())
    file = tmp_path / "a=b.toml"
    file.write_bytes(b"\xef\xbb\xbf" + dump_recipe(expected).encode())
    for source in (
        file,
        str(file),
        dump_recipe(expected),
        "int8",
        ["int8"],
        ["fuse.inference", "fuse.kernels", Static],
        [{"name": "fuse.inference"}, "fuse.kernels", {"name": "quantize.static", "bits": 8}],
        (p for p in expected),
        {"pass": [{"name": "fuse.inference"}, {"name": "fuse.kernels"}, {"name": "quantize.static"}]},
    ):
        assert load_recipe(source, REGISTRY) == expected
    for single in (Static(), Static, "quantize.static", {"name": "quantize.static"}):
        assert load_recipe(single, REGISTRY) == (Static(),)
    assert load_recipe([], REGISTRY) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]]\nname = 'probe.prune'\nratio = = 3\n", "line 3"),
        (
            "[[pass]]\nname = 'probe.prune'\n[[pass]]\nname = 'probe.pune'\n",
            r"step 2: unknown pass 'probe.pune'",
        ),
        ("[[pass]]\nname = 'probe.pune'\n", "did you mean 'probe.prune'"),
        ("[[pass]]\nname = 'probe.prune'\nrato = 0.1\n", r"step 1: probe\.prune: unknown option 'rato'"),
        ("[[pass]]\nname = 'probe.prune'\nrato = 0.1\n", "did you mean 'ratio'"),
        ("[[pass]]\nname = 'probe.prune'\nratio = 2\n", r"option 'ratio' = 2 must lie in \[0, 0.95\]"),
        ("[[pass]]\nname = 'probe.prune'\nratio = 'much'\n", "option 'ratio' = 'much' must be float"),
        ("[[pass]]\nname = 'probe.prune'\nratio = inf\n", "option 'ratio' = inf is not a finite number"),
        ("[[pass]]\nname = 'probe.prune'\nratio = nan\n", "option 'ratio' = nan is not a finite number"),
        ("[[pass]]\nname = 'probe.everything'\nfree = [[nan]]\n", "option 'free' = nan is not a finite"),
        ("[[pass]]\nname = 'probe.prune'\nkind = 'l3'\n", "option 'kind' = 'l3' must be one of"),
        ("[[pass]]\nname = 'probe.everything'\nfree = 2020-01-01\n", "option 'free' is a date"),
        ("[[pass]]\nname = 'probe.everything'\nfree = {a = 1}\n", "option 'free' is a dict"),
        ("[[pass]]\nname = 'probe.needs'\n", r"step 1: probe\.needs: .*'ratio'"),
        ("[[pass]]\nname = 'probe.picky'\nlow = 5\n", r"probe\.picky: ValueError: low must be below high"),
        ("[[pass]]\nratio = 1\n", "step 1: the table has no 'name'"),
        ("[[pass]]\nname = 3\n", "step 1: 'name' is 3, not a string"),
        ("[pass]\nname = 'probe.prune'\n", "not a list of tables.*\n.*two brackets"),
        ("pass = [3]\n", "step 1: 3 is neither a pass"),
        ("steps = []\n", "unknown key 'steps'"),
        ("# nothing\n", "no steps"),
        ("x = " + "[" * 50_000 + "\n", "nested too deeply"),
        ("x = " + "9" * 10_000 + "\n", "recipe: "),
    ],
)
def test_errors_say_where_what_and_the_way_out(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(text, REGISTRY)


def test_an_unknown_name_is_compared_with_presets_and_passes() -> None:
    with pytest.raises(RecipeError, match="did you mean 'int8'"):
        load_recipe("itn8", REGISTRY)
    with pytest.raises(RecipeError, match=r"step 2: 'probe\.prun'.*\n.*'probe.prune'"):
        load_recipe(["int8", "probe.prun"], REGISTRY)


def test_a_plugin_that_failed_to_load_is_named_beside_an_unknown_pass() -> None:
    registry = make_registry()
    registry.broken["cluster"] = ImportError("no scipy")
    with pytest.raises(RecipeError, match="failed to load: cluster"):
        load_recipe("cluster.weights", registry)


def test_broken_files_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\x80\x02binary")
    (tmp_path / "huge.toml").write_bytes(b"#" * (attar.recipe.MAX_BYTES + 1))
    (tmp_path / "folder.toml").mkdir()
    for name, message in [
        ("binary.toml", "byte 0 is not UTF-8"),
        ("huge.toml", "larger than"),
        ("folder.toml", "cannot read"),
        ("missing.toml", "no such file"),
        ("nul\0.toml", "cannot read"),
    ]:
        with pytest.raises(InputError, match=message):
            load_recipe(tmp_path / name, REGISTRY)


@pytest.mark.parametrize("source", [3, None, b"[[pass]]", object()])
def test_things_that_are_no_recipe_are_refused(source: Any) -> None:
    with pytest.raises(InputError, match="a recipe cannot be made of"):
        load_recipe(source, REGISTRY)


@given(st.text(max_size=60) | st.text("[]pas=\"'#.\n\\u{}01einf ", max_size=60))
def test_no_text_raises_anything_but_ours(text: str) -> None:
    with contextlib.suppress(AttarError):
        load_recipe(text, REGISTRY)
