"""Modules that run the subgraphs of If, Loop and Scan."""

from __future__ import annotations

from typing import Any

import torch


class Choice(torch.nn.Module):
    """Runs one of two modules; `torch.cond` where the model is compiled or exported."""

    def __init__(self, then_branch: torch.nn.Module, else_branch: torch.nn.Module) -> None:
        super().__init__()
        self.then_branch, self.else_branch = then_branch, else_branch

    def forward(self, condition: torch.Tensor, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        condition = condition.reshape(())
        if torch.compiler.is_compiling():
            return torch.cond(condition, self.then_branch, self.else_branch, operands)
        return self.then_branch(*operands) if condition else self.else_branch(*operands)


class Repeat(torch.nn.Module):
    """ONNX Loop: runs `body(iteration, condition, *state, *outer)` while the condition holds.

    Args:
        body: gives the condition, the new state, and one slice of every result that is collected.
        states: how many tensors the state has.
        collected: how many results are collected.
        trips: number of rounds, where it is known beforehand.
    """

    def __init__(self, body: torch.nn.Module, states: int, collected: int, trips: int | None) -> None:
        super().__init__()
        self.body, self.states, self.collected, self.trips = body, states, collected, trips

    def forward(
        self, limit: torch.Tensor | None, condition: torch.Tensor | None, *operands: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        state, outer = list(operands[: self.states]), operands[self.states :]
        rounds = self.trips if self.trips is not None else None if limit is None else int(limit)
        going = torch.ones((), dtype=torch.bool) if condition is None else condition
        slices: list[list[torch.Tensor]] = [[] for _ in range(self.collected)]
        count = 0
        while (rounds is None or count < rounds) and bool(going):
            made = self.body(torch.tensor(count), going, *state, *outer)
            going, state = made[0], list(made[1 : 1 + self.states])
            for kept, one in zip(slices, made[1 + self.states :], strict=True):
                kept.append(one)
            count += 1
        if not count and self.collected:  # the shapes of what no round gave are those that a round would give
            made = self.body(torch.tensor(0), going, *state, *outer)
            return (*state, *(one.new_empty((0, *one.shape)) for one in made[1 + self.states :]))
        return (*state, *(torch.stack(kept) for kept in slices))


class Sweep(torch.nn.Module):
    """ONNX Scan: runs `body(*state, *slices, *outer)` along an axis of every scanned input.

    Args:
        states: how many tensors the state has.
        in_axes: axis of every scanned input.
        backward_in: whether it is read from the end.
        out_axes: axis of every result along which its slices are put.
        backward_out: whether they are put in front.
    """

    def __init__(  # noqa: PLR0917
        self,
        body: torch.nn.Module,
        states: int,
        in_axes: list[int],
        backward_in: list[int],
        out_axes: list[int],
        backward_out: list[int],
    ) -> None:
        super().__init__()
        self.body, self.states = body, states
        self.in_axes, self.backward_in = list(in_axes), list(backward_in)
        self.out_axes, self.backward_out = list(out_axes), list(backward_out)

    def forward(self, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(self.in_axes)
        state = list(operands[: self.states])
        scanned, outer = operands[self.states : self.states + count], operands[self.states + count :]
        steps = scanned[0].size(self.in_axes[0])
        slices: list[list[torch.Tensor]] = [[] for _ in self.out_axes]
        for step in range(steps):
            parts = [
                x.select(axis, steps - 1 - step if back else step)
                for x, axis, back in zip(scanned, self.in_axes, self.backward_in, strict=True)
            ]
            made: Any = self.body(*state, *parts, *outer)
            state = list(made[: self.states])
            for kept, one in zip(slices, made[self.states :], strict=True):
                kept.append(one)
        if not steps and slices:  # as in a loop of no rounds
            parts = [
                x.select(a, 0) for x, a in zip(map(_longer, scanned, self.in_axes), self.in_axes, strict=True)
            ]
            made = self.body(*state, *parts, *outer)[self.states :]
            return (*state, *(_shortened(one, a) for one, a in zip(made, self.out_axes, strict=True)))
        results = [
            torch.stack(kept[::-1] if back else kept, axis)
            for kept, axis, back in zip(slices, self.out_axes, self.backward_out, strict=True)
        ]
        return (*state, *results)


def _longer(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Zeros in the shape of `x`, which has no elements along `axis`, with one."""
    shape = list(x.shape)
    shape[axis] = 1
    return x.new_zeros(shape)


def _shortened(one: torch.Tensor, axis: int) -> torch.Tensor:
    """The stack of no tensors like `one`."""
    shape = list(one.shape)
    shape.insert(axis % (one.ndim + 1), 0)
    return one.new_empty(shape)
