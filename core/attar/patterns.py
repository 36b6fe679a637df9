"""How options name what they mean: patterns of nodes, values and weights (`*attention*`), operator types."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable

import onnx_ir as ir

from attar import graph
from attar.errors import RecipeError, did_you_mean


def matches(names: Iterable[str], patterns: Collection[str]) -> bool:
    """Whether any of the names of one thing fits any pattern. Case counts."""
    return bool(patterns) and any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns)


def check_patterns(patterns: Iterable[str], names: Collection[str], *, option: str, of: str) -> None:
    """A pattern that matches nothing is a mistake, not silence.

    Args:
        names: all that could be meant.
        option: where the patterns stand, such as "prune.weights: option 'keep'".
        of: what they name, such as "weight or node".

    Raises:
        RecipeError: a pattern fits none of the names; the hint shows those like it.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"{option} = {pattern!r} matches no {of}", hint=did_you_mean(pattern, names))


def check_operators(
    operators: Iterable[str], known: Collection[str], *, where: str, why: str = "whose weights are not known"
) -> None:
    """Operator types of an option `operators` must be ones that it can mean.

    Args:
        where: the pass.
        why: what is wrong with those that it cannot.

    Raises:
        RecipeError: one is not in `known`; the hint shows those like it.
    """
    for operator in operators:
        if operator not in known:
            raise RecipeError(
                f"{where}: option 'operators' names {operator!r}, {why}", hint=did_you_mean(operator, known)
            )


def names_in(model: ir.Model) -> list[str]:
    """The names of all nodes, of what they give, and of all constants, with those of subgraphs."""
    names = [v.name or "" for g in model.graphs() for v in g.initializers.values()]
    names += [n.name or "" for n in graph.all_nodes(model)]
    return names + [v.name or "" for n in graph.all_nodes(model) for v in n.outputs]
