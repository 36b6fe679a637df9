"""Figures as readers want them, and the rows and groups that every rendering shows in the same words.

Sizes are shown in MB of 10^6 bytes, times in milliseconds, ratios as "times smaller" and "times faster".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attar.report import Kernel, OutputDiff, Report, Skip, Snapshot, Speed, Step

ABSENT = "-"
LONGEST_NAME = 120


@dataclass(frozen=True)
class Row:
    """One line of the before/after table. `good`: the change is for the better; None: for neither."""

    label: str
    before: str
    after: str
    change: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Group:
    """Things left alone for one and the same reason."""

    reason: str
    ops: tuple[str, ...]
    names: tuple[str, ...]

    def shown(self, most: int = 3) -> str:
        """The first names, and how many more there are."""
        first = ", ".join(self.names[:most])
        return first + (f" and {len(self.names) - most} more" if len(self.names) > most else "")


def clean(value: object, longest: int = 2000) -> str:
    """Text from a model or a plugin made safe to show: control characters become escapes, long text is cut.

    Names come from untrusted files; an escape sequence in one must not reach the reader's terminal.
    """
    shown = str(value)
    if len(shown) > longest:
        shown = shown[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def name(value: object) -> str:
    return clean(value, LONGEST_NAME)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}" if size >= 10_000 else f"{size / 1e6:.4f}"


def count(number: int) -> str:
    return f"{number:,}"


def milliseconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def metric(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def decibels(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "equal" if value > 0 else "-inf dB"
    return f"{value:.1f} dB"


def times(ratio: float, smaller: str, larger: str) -> str:
    """The ratio after/before in words: 0.5 is "2.00x faster"."""
    if not math.isfinite(ratio) or ratio <= 0:
        return ABSENT
    if abs(ratio - 1) < 0.005:
        return "same"
    return f"{1 / ratio:.2f}x {smaller}" if ratio < 1 else f"{ratio:.2f}x {larger}"


def size_change(before: Snapshot, after: Snapshot) -> str:
    return times(after.bytes / before.bytes, "smaller", "larger") if before.bytes else ABSENT


def speed_change(speed: Speed) -> str:
    return times(speed.ratio, "faster", "slower")


def rows(report: Report) -> list[Row]:
    """The before/after table of a report."""
    return compared(report.before, report.after, report.speed, report.outputs, report.metric_name)


def compared(
    before: Snapshot,
    after: Snapshot,
    speed: Speed | None = None,
    outputs: Sequence[OutputDiff] = (),
    metric_name: str = "",
) -> list[Row]:
    """One row a figure; what was not measured has no row."""
    found = [
        Row(
            "size, MB",
            megabytes(before.bytes),
            megabytes(after.bytes),
            size_change(before, after),
            _better(before.bytes, after.bytes),
        ),
        Row(
            "parameters",
            count(before.parameters),
            count(after.parameters),
            _difference(before.parameters, after.parameters),
        ),
        Row("nodes", count(before.nodes), count(after.nodes), _difference(before.nodes, after.nodes)),
    ]
    if before.kernels or after.kernels:
        integers = before.count("integer"), after.count("integer")
        floats = before.count("float", compute=True), after.count("float", compute=True)
        others = before.count("float", compute=False), after.count("float", compute=False)
        conversions = before.count("conversion"), after.count("conversion")
        found += [
            _counts("integer kernels", integers, good=_better(integers[1], integers[0])),
            _counts("float compute kernels", floats, good=_better(*floats)),
            _counts("other float kernels", others),
            _counts("conversion kernels", conversions),
        ]
    if speed is not None:
        s = speed
        interval = f"{speed_change(s)} (time x {s.ratio:.3f}, 95 % {s.low:.3f} to {s.high:.3f})"
        good = True if s.high < 1 else False if s.low > 1 else None
        found.append(Row("latency, ms", milliseconds(s.before_ms), milliseconds(s.after_ms), interval, good))
    if before.metric is not None or after.metric is not None:
        change = ""
        if before.metric is not None and after.metric is not None:
            change = f"{after.metric - before.metric:+.4f}"
        label = name(metric_name or "metric")
        found.append(Row(label, metric(before.metric), metric(after.metric), change))
    if outputs:
        worst = worst_first(outputs)[0]
        found.append(Row("output difference", "", decibels(worst.sqnr_db), output_words(worst)))
    return found


def worst_first(outputs: Iterable[OutputDiff]) -> list[OutputDiff]:
    """The output that differs most first; an undefined SQNR counts as the worst of all."""
    return sorted(outputs, key=lambda o: -math.inf if math.isnan(o.sqnr_db) else o.sqnr_db)


def output_words(diff: OutputDiff) -> str:
    parts = [f"max abs {diff.max_abs:.3g}", f"max rel {diff.max_rel:.3g}"]
    if diff.agreement is not None:
        parts.append(f"same arg-max {share(diff.agreement)}")
    return f"{name(diff.name)}: {', '.join(parts)}, {count(diff.samples)} samples"


def call(step: Step, longest: int = 160) -> str:
    """`quantize.static(bits=8, per_channel=True)`."""
    options = ", ".join(f"{k}={v!r}" for k, v in step.options.items() if k != "name")
    return clean(f"{step.name}({options})", longest)


def grouped(skips: Iterable[Skip]) -> list[Group]:
    """Skips by reason, the largest group first."""
    return _group((skip.reason, skip.op, skip.name) for skip in skips)


def stayed_float(report: Report) -> list[Group]:
    """Compute kernels of the result that stayed in float, by reason.

    In a result without integer kernels nothing was meant to leave float: only kernels with a reason count.
    """
    quantized = report.after.count("integer") > 0
    return _group(
        (kernel.reason or "no reason recorded", kernel.op, kernel.name)
        for kernel in report.float_kernels
        if quantized or kernel.reason
    )


def slowest(kernels: Iterable[Kernel], most: int) -> list[Kernel]:
    """The profiled kernels that take longest."""
    timed = [k for k in kernels if k.milliseconds is not None and math.isfinite(k.milliseconds)]
    return sorted(timed, key=lambda k: -(k.milliseconds or 0.0))[:most]


def _group(triples: Iterable[tuple[str, str, str]]) -> list[Group]:
    found: dict[str, tuple[dict[str, None], list[str]]] = {}
    for reason, op, item in triples:
        ops, names = found.setdefault(clean(reason), ({}, []))
        ops[name(op)] = None
        names.append(name(item))
    groups = [Group(reason, tuple(ops), tuple(names)) for reason, (ops, names) in found.items()]
    return sorted(groups, key=lambda g: -len(g.names))


def _counts(label: str, pair: tuple[int, int], *, good: bool | None = None) -> Row:
    return Row(label, count(pair[0]), count(pair[1]), good=good)


def _difference(before: int, after: int) -> str:
    return "" if before == after else f"{after - before:+,}"


def _better(before: float, after: float) -> bool | None:
    return None if before == after else after < before
