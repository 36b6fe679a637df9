"""What happened to a model: the data that every report is made of. Rendering lives in `attar.render`.

Sizes are bytes, times milliseconds unless a name says otherwise, SQNR decibels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

KernelKind = Literal["integer", "float", "conversion", "data"]


@dataclass(frozen=True)
class Skip:
    """Something that a pass left alone.

    Attributes:
        names: other names under which a runtime may know it.
    """

    name: str
    op: str
    reason: str
    names: tuple[str, ...] = ()


@dataclass
class Step:
    """One pass of the recipe, as it went."""

    name: str
    options: dict[str, Any]
    seconds: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    changes: list[str] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    implied: bool = False
    """Run because a later pass requires it, not because the recipe names it."""
    refused: str = ""
    """Why the pass declined; empty if it acted."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of the runtime's optimized graph.

    Attributes:
        name: the runtime's node name.
        op: its operator type, e.g. QLinearConv.
        kind: integer (computes on integers), float, conversion (quantize, dequantize, layout), data (moves
            only).
        compute: whether it is one of the multiply-accumulate operators that compression is about.
        outputs: names of the values that it makes.
        milliseconds: median time of one run, None if not profiled.
        reason: why it stayed in float, for float kernels of a quantized model.
    """

    name: str
    op: str
    kind: KernelKind
    compute: bool = False
    outputs: tuple[str, ...] = ()
    milliseconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A model at one moment.

    Attributes:
        bytes: size of the file(s) that `save` writes; see `attar.graph.saved_size` for how exact.
        parameters: number of weight elements.
        nodes: number of nodes.
        kernels: the runtime's optimized graph.
        metric: value of the evaluation metric, None if none was asked for.
    """

    bytes: int
    parameters: int
    nodes: int
    kernels: tuple[Kernel, ...] = ()
    metric: float | None = None

    def count(self, kind: KernelKind, *, compute: bool | None = None) -> int:
        return sum(k.kind == kind and compute in (None, k.compute) for k in self.kernels)


@dataclass(frozen=True)
class Speed:
    """Latency of two models measured interleaved in one run.

    Attributes:
        before_ms, after_ms: median time of one run of each.
        ratio: median of the paired ratios after/before; below 1 is faster.
        low, high: a 95 % interval of the ratio (order statistics of the paired ratios).
        runs: how many pairs.
        threads: intra-op threads of both.
        shapes: input name -> shape that was run.
    """

    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    runs: int
    threads: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class OutputDiff:
    """How one output of the result differs from the original's on the same inputs.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: largest absolute difference over the largest magnitude of the original.
        sqnr_db: 10 log10(sum y^2 / sum (y - y')^2); inf when equal.
        agreement: share of rows whose arg-max over the last axis agrees, None where that means nothing.
        samples: how many samples were compared.
    """

    name: str
    max_abs: float
    max_rel: float
    sqnr_db: float
    agreement: float | None
    samples: int


@dataclass
class Report:
    """Everything that one `compress` did. `print(report)` is the text form.

    Attributes:
        verdict: "accepted" or "unchanged" (compression did not pay or broke the budget; the original is
            returned).
        headline: one sentence for a reader in a hurry.
        decisions: what the contract changed on the way (repairs), in order.
        environment: versions, CPU and instruction set that the figures belong to.
    """

    model: str
    framework: str
    target: str
    runtime: str
    verdict: Literal["accepted", "unchanged"]
    headline: str
    before: Snapshot
    after: Snapshot
    steps: list[Step] = field(default_factory=list)
    speed: Speed | None = None
    outputs: list[OutputDiff] = field(default_factory=list)
    metric_name: str = ""
    decisions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def float_kernels(self) -> list[Kernel]:
        """The compute kernels of the result that stayed in float, each with its reason."""
        return [k for k in self.after.kernels if k.kind == "float" and k.compute]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; non-finite numbers become None."""
        fitted = plain(dataclasses.asdict(self))
        assert isinstance(fitted, dict)
        return fitted

    def to_json(self, *, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_html(self) -> str:
        """One self-contained page."""
        from attar.render import html

        return html(self)

    def save(self, path: str | Path) -> None:
        """Write `.html`, `.json` or text, by the suffix. The file is replaced in one step.

        Raises:
            InputError: the place cannot be written.
        """
        from attar.files import place, write_atomic

        path = place(path)
        suffix = path.suffix.lower()
        text = {".html": self.to_html, ".htm": self.to_html, ".json": self.to_json}.get(
            suffix, self.__str__
        )()
        write_atomic(path, text.encode("utf-8"))

    def __str__(self) -> str:
        from attar.render import text

        return text(self)


def plain(value: Any) -> Any:
    """`value` in types that JSON has: tuples as lists, numpy scalars as numbers, NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "item"):  # numpy scalars
        return plain(value.item())
    return str(value)
