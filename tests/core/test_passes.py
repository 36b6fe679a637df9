"""Options of passes: what fits, what is brought to fit, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal, Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import RecipeError
from attar.passes import Choice, Doc, Pass, Range


class Every(Pass, name="test.every"):
    """One option of each kind."""

    ratio: Annotated[float, Range(0.0, 0.95), Doc("share of the channels")] = 0.5
    count: Annotated[int, Range(low=1)] = 3
    flag: bool = False
    label: str = "l1"
    bits: Annotated[int, Choice(2, 4, 8)] = 8
    kind: Literal["fast", "exact"] = "fast"
    size: Literal[16, 32] = 16
    axes: tuple[int, ...] = (0, 1)
    weights: tuple[float, ...] = ()
    pair: tuple[int, str] = (1, "a")
    limit: float | None = None
    old_style: Optional[int] = None  # noqa: UP045
    deep: Annotated[float, Range(0, 1)] | None = None
    mode: Literal["a", "b"] | None = None
    anything: Any = None


class Needed(Pass, name="test.needed"):
    """A required option."""

    path: str
    depth: int = 1


@pytest.mark.parametrize(
    ("option", "given_", "kept"),
    [
        ("ratio", 0, 0.0),
        ("ratio", 0.95, 0.95),
        ("axes", [2, 3], (2, 3)),
        ("axes", (), ()),
        ("weights", [1, 2.5], (1.0, 2.5)),
        ("weights", (1, 2), (1.0, 2.0)),
        ("pair", [2, "b"], (2, "b")),
        ("limit", 1, 1.0),
        ("limit", None, None),
        ("old_style", 5, 5),
        ("deep", 1, 1.0),
        ("mode", "b", "b"),
        ("mode", None, None),
        ("size", 32, 32),
        ("bits", 4, 4),
        ("ratio", np.float32(0.5), 0.5),
        ("count", np.int64(7), 7),
        ("flag", np.bool_(True), True),
        ("anything", {"any": 1}, {"any": 1}),
    ],
)
def test_values_are_brought_to_the_type_without_loss(option: str, given_: Any, kept: Any) -> None:
    value = getattr(Every(**{option: given_}), option)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(v) for v in value] == [type(v) for v in kept]


@pytest.mark.parametrize(
    ("option", "bad", "words"),
    [
        ("ratio", 0.96, r"must lie in \[0, 0\.95\]"),
        ("ratio", -0.1, r"must lie in \[0, 0\.95\]"),
        ("ratio", "half", "must be float"),
        ("ratio", True, "must be float"),
        ("ratio", float("nan"), "must be a number"),
        ("ratio", np.nan, "must be a number"),
        ("ratio", 10**400, "must be float"),
        ("ratio", None, "must be float"),
        ("count", 0, r"must lie in \[1, inf\)"),
        ("count", 1.0, "must be int"),
        ("count", True, "must be int"),
        ("flag", 1, "must be bool"),
        ("flag", "yes", "must be bool"),
        ("label", 1, "must be str"),
        ("bits", 3, "must be one of 2, 4, 8"),
        ("kind", "exakt", r"must be one of 'fast', 'exact' \(did you mean 'exact'\?\)"),
        ("size", 17, "must be one of 16, 32"),
        ("size", "16", "must be int"),
        ("axes", "01", "must be a list of int"),
        ("axes", 3, "must be a list of int"),
        ("axes", [1, 2.5], "must be a list of int"),
        ("axes", [True], "must be a list of int"),
        ("pair", [1], "must be a list of 2 int"),
        ("pair", [1, 2], "must be a list of 2 int"),
        ("limit", "none", "must be float or none"),
        ("deep", 1.5, r"must lie in \[0, 1\]"),
        ("mode", "c", "must be one of 'a', 'b'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(option: str, bad: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"test\.every: option '{option}' = .* {words}"):
        Every(**{option: bad})


def test_ranges_may_leave_out_their_ends() -> None:
    class Open(Pass, name="test.open"):
        """An open interval."""

        x: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5

    assert Open(x=1e-9).x == 1e-9
    for bad in (0.0, 1.0, float("inf")):
        with pytest.raises(RecipeError, match=r"must lie in \(0, 1\)"):
            Open(x=bad)
    assert str(Range(high=2)) == "(-inf, 2]"
    assert str(Range(low=0.5, open_low=True)) == "(0.5, inf)"


def test_ranges_and_choices_hold_for_every_element_of_a_list() -> None:
    class Lists(Pass, name="test.lists"):
        """Lists with bounds."""

        shares: Annotated[tuple[float, ...], Range(0, 1)] = ()
        names: Annotated[tuple[str, ...], Choice("conv", "gemm")] = ("conv",)
        shape: Annotated[tuple[int, ...], Choice((1, 1), (3, 3))] = (1, 1)

    assert Lists(shares=[0, 1]).shares == (0.0, 1.0)
    with pytest.raises(RecipeError, match=r"'shares' .* must lie in \[0, 1\]"):
        Lists(shares=[0.5, 1.5])
    assert Lists(names=["gemm", "conv"]).names == ("gemm", "conv")
    with pytest.raises(
        RecipeError, match=r"'names' .* must be one of 'conv', 'gemm' \(did you mean 'conv'\?\)"
    ):
        Lists(names=["conf"])
    assert Lists(shape=[3, 3]).shape == (3, 3)
    with pytest.raises(RecipeError, match="'shape'"):
        Lists(shape=[3, 1])


def test_an_unknown_option_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"test\.every: unknown option 'ration'\n.*did you mean 'ratio'\?"):
        Every(ration=0.5)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match=r"known: anything, axes, bits"):
        Every(zzzzzz=0.5)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="unknown option 'ration'"):
        Every.from_dict({"ration": 0.5})


def test_positions_and_missing_options_are_recipe_errors() -> None:
    with pytest.raises(RecipeError, match=r"options are given by name\n.*test\.needed\(path, depth=1\)"):
        Needed("x")  # type: ignore[misc]
    with pytest.raises(RecipeError, match="option 'path' has no default; give it a value"):
        Needed()  # type: ignore[call-arg]


def test_passes_are_frozen_values() -> None:
    one, same, other = Every(axes=[1]), Every(axes=(1,)), Every(axes=(2,))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.ratio = 0.1  # type: ignore[misc]
    assert Needed(path="a") != Every()


def test_text_forms() -> None:
    assert str(Every()) == "test.every()"
    assert str(Every(ratio=0.25, axes=[1])) == "test.every(ratio=0.25, axes=(1,))"
    assert str(Needed(path="a")) == "test.needed(path='a')"
    assert repr(Needed(path="a")).endswith("Needed(path='a', depth=1)")
    assert Needed.usage() == "test.needed(path, depth=1)"


def test_options_describe_themselves() -> None:
    options = {o.name: o for o in Every.options()}
    assert list(options)[:3] == ["ratio", "count", "flag"]
    ratio = options["ratio"]
    assert (ratio.type, ratio.default, ratio.required, ratio.doc) == (
        float,
        0.5,
        False,
        "share of the channels",
    )
    assert ratio.range == Range(0.0, 0.95)
    assert options["bits"].choices == (2, 4, 8)
    assert options["kind"].choices == ("fast", "exact")
    assert options["size"].type is int
    assert options["deep"].range == Range(0, 1)
    names = {n: o.type_name for n, o in options.items()}
    assert names["axes"] == "list of int"
    assert names["limit"] == names["deep"] == "float or none"
    assert names["mode"] == "str or none"
    assert names["kind"] == "str"
    assert Needed.options()[0].required


def test_inheritance_keeps_adds_and_overrides_options() -> None:
    class Family(Pass):
        """A base without a name of its own."""

        requires = ("fuse.inference",)
        tolerance = 0.5
        seed: int = 0

    class Child(Family, name="family.child"):
        """Adds one option."""

        extra: float = 1.0

    class Grandchild(Child, name="family.grandchild"):
        """Overrides a default and a bound."""

        seed: Annotated[int, Range(5)] = 5
        tolerance = None

    assert [o.name for o in Child.options()] == ["seed", "extra"]
    assert Child(seed=2).to_dict() == {"name": "family.child", "seed": 2, "extra": 1.0}
    assert Child.requires == Grandchild.requires == ("fuse.inference",)
    assert (Child.tolerance, Grandchild.tolerance) == (0.5, None)
    assert Grandchild().seed == 5
    with pytest.raises(RecipeError, match=r"family\.grandchild: option 'seed'"):
        Grandchild(seed=4)
    assert Child() != Grandchild(seed=5)
    assert isinstance(Grandchild(), Child)


def test_a_check_of_its_own_goes_into_post_init() -> None:
    class Pair(Pass, name="test.pair"):
        """low below high."""

        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.low >= self.high:
                raise RecipeError(f"{self.name}: low {self.low} is not below high {self.high}")

    with pytest.raises(RecipeError, match="low 3 is not below high 1"):
        Pair(low=3)
    with pytest.raises(RecipeError, match="'low' = 'x' must be int"):
        Pair(low="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["prune", "a.b.c", "prune.1st", "prune channels", ".x", "x."])
def test_names_have_the_form_family_verb(name: str) -> None:
    with pytest.raises(TypeError, match=r"a pass is named 'family\.verb'"):
        type("Bad", (Pass,), {}, name=name)


@pytest.mark.parametrize("taken", ["name", "requires", "needs", "plans", "idempotent", "tolerance"])
def test_attributes_of_every_pass_cannot_be_options(taken: str) -> None:
    with pytest.raises(TypeError, match=f"'{taken}' is an attribute of every pass"):
        type("Bad", (Pass,), {"__annotations__": {taken: str}, taken: "x"}, name="test.bad")


def test_a_pass_without_apply_says_so() -> None:
    with pytest.raises(TypeError, match=r"pass 'test\.needed' does not define apply"):
        Needed(path="x").apply(None, None)  # type: ignore[arg-type]


def test_a_table_of_another_pass_is_refused() -> None:
    assert Needed.from_dict({"name": "test.needed", "path": "x"}) == Needed(path="x")
    with pytest.raises(RecipeError, match=r"test\.needed: the table names the pass 'test\.every'"):
        Needed.from_dict({"name": "test.every", "path": "x"})


def test_default_factories_make_the_default() -> None:
    class Made(Pass, name="test.made"):
        """A default that is made."""

        axes: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))

    assert Made.options()[0].default == (1, 2)
    assert not Made.options()[0].required
    assert str(Made()) == "test.made()"


@given(
    ratio=st.floats(0, 0.95),
    count=st.integers(1, 2**63 - 1),
    flag=st.booleans(),
    label=st.text(),
    bits=st.sampled_from([2, 4, 8]),
    axes=st.lists(st.integers()),
    weights=st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_options_survive_json(**options: Any) -> None:
    step = Every(**options)
    table = json.loads(json.dumps(step.to_dict()))
    assert table["name"] == "test.every"
    back = Every.from_dict(table)
    assert back == step
    assert hash(back) == hash(step)
    assert str(back) == str(step)
