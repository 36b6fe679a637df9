"""One budget for many layers: each saves where it costs the outputs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Offer(Generic[T]):
    """One way to write a layer: what it costs, what it loses, and what it is (None: the layer as it is)."""

    cost: float
    error: float
    item: T | None


def hull(offers: Sequence[Offer[T]]) -> list[Offer[T]]:
    """The offers worth taking for some price of errors, from the dearest to the cheapest: the lower convex
    hull of error over cost. O(n log n)."""
    found: list[Offer[T]] = []
    for offer in sorted(offers, key=lambda o: (-o.cost, o.error)):
        if found and offer.cost == found[-1].cost:
            continue
        while found and found[-1].error >= offer.error:
            found.pop()  # dearer and no better
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-1], offer):
            found.pop()
        found.append(offer)
    return found


def distribute(layers: Sequence[Sequence[Offer[T]]], budget: float) -> list[Offer[T]] | None:
    """One offer a layer, so that the costs sum up to at most `budget` and the errors to as little as this way
    can find.

    Steps along the hulls are taken in the order of rising error per cost saved, which is optimal but for the
    last one (the continuous relaxation's optimum); what that one leaves over is spent on what gains most.
    Every layer should offer itself as it is.

    Returns:
        None if all the cheapest offers together are above the budget.
    """
    hulls = [hull(offers) for offers in layers]
    taken = [0] * len(hulls)
    spent = sum(steps[0].cost for steps in hulls)
    order = sorted(
        (_slope(steps[i], steps[i + 1]), place, i)
        for place, steps in enumerate(hulls)
        for i in range(len(steps) - 1)
    )
    for _, place, i in order:
        if spent <= budget:
            break
        spent += hulls[place][i + 1].cost - hulls[place][i].cost
        taken[place] = i + 1
    if spent > budget * (1 + 1e-12):
        return None
    return _spend([steps[i] for steps, i in zip(hulls, taken, strict=True)], layers, budget)


def _spend(chosen: list[Offer[T]], layers: Sequence[Sequence[Offer[T]]], budget: float) -> list[Offer[T]]:
    """Use what the last step left over: take the largest gain that it still pays for, until there is none."""
    while True:
        room = budget - sum(offer.cost for offer in chosen)
        best, gain = None, 0.0
        for i, offers in enumerate(layers):
            for offer in offers:
                better = chosen[i].error - offer.error
                if better > gain and offer.cost - chosen[i].cost <= room:
                    best, gain = (i, offer), better
        if best is None:
            return chosen
        chosen[best[0]] = best[1]


def _slope(one: Offer[T], other: Offer[T]) -> float:
    """Error more for each unit of cost less."""
    return (other.error - one.error) / (one.cost - other.cost)
