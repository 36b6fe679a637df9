"""Text and HTML of reports: complete, aligned, escaped, and small however large the model."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import math
import re
import sys

import pytest

from attar import render
from attar.errors import AttarError
from attar.render import figures
from attar.report import Kernel, OutputDiff, Report, Skip, Snapshot, Speed, Step

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"


def full_report() -> Report:
    before = tuple(Kernel(f"conv_{i}", "Conv", "float", True, (f"v{i}",), 0.5) for i in range(6))
    after = (
        *(Kernel(f"conv_{i}_q", "QLinearConv", "integer", True, (), 0.125 * (i + 1)) for i in range(4)),
        Kernel("conv_4", "Conv", "float", True, (), 0.75, "three input channels"),
        Kernel("conv_5", "Conv", "float", True, (), 0.25, "three input channels"),
        Kernel("q", "QuantizeLinear", "conversion", False, (), 0.0625),
        Kernel("softmax", "Softmax", "float", False, (), None),
    )
    return Report(
        model="net.onnx",
        framework="onnx",
        target="cpu",
        runtime="onnxruntime",
        verdict="accepted",
        headline="four times smaller",
        before=Snapshot(16_000_000, 4_000_000, 20, before, 0.75),
        after=Snapshot(4_000_000, 4_000_000, 50, after, 0.7421875),
        steps=[
            Step("fuse.inference", {}, 0.25, 16_000_000, 15_990_000, 26, 20, ["folded 6"], [], True),
            Step(
                "quantize.static",
                {"name": "quantize.static", "bits": 8, "axes": [0, 1]},
                1.5,
                15_990_000,
                4_000_000,
                20,
                50,
                [],
                [Skip(f"relu_{i}", "Relu", "no integer kernel") for i in range(7)]
                + [Skip("conv_4", "Conv", "three input channels")],
            ),
            Step("prune.channels", {}, 0.125, refused="nothing that can go"),
        ],
        speed=Speed(8.0, 4.0, 0.5, 0.48, 0.52, 30, 1, {"x": (1, 3, 8, 8)}),
        outputs=[
            OutputDiff("features", 0.0, 0.0, math.inf, None, 64),
            OutputDiff("logits", 0.5, 0.03125, 31.25, 0.984375, 64),
        ],
        metric_name="top1",
        decisions=["conv_5 goes back to float"],
        notes=["opset raised from 11 to 21"],
        environment={"cpu": "some cpu", "onnxruntime": "1.32.0"},
        seconds=12.34,
    )


def bare_report() -> Report:
    small = Snapshot(0, 0, 0)
    return Report("m", "onnx", "cpu", "onnxruntime", "unchanged", "did not pay", small, small)


def evil_report() -> Report:
    kernel = Kernel(EVIL, EVIL, "float", True, (EVIL,), 1.0, EVIL)
    shot = Snapshot(10, 10, 10, (kernel, Kernel("i", EVIL, "integer", True, (), 2.0)), 0.5)
    step = Step(EVIL, {EVIL: EVIL}, changes=[EVIL], skipped=[Skip(EVIL, EVIL, EVIL)], refused=EVIL)
    speed = Speed(1.0, 2.0, 2.0, 1.9, 2.1, 3, 1, {EVIL: (1,)})
    diff = OutputDiff(EVIL, 1.0, 1.0, math.nan, None, 1)
    return Report(
        EVIL,
        EVIL,
        EVIL,
        EVIL,
        "unchanged",
        EVIL,
        shot,
        shot,
        [step],
        speed,
        [diff],
        EVIL,
        [EVIL],
        [EVIL],
        {EVIL: EVIL},
    )


def huge_report(number: int = 20_000) -> Report:
    kernels = tuple(
        Kernel(f"{'scope/' * 30}{i}", "Conv", "float", True, (), 0.01, f"range {i}") for i in range(number)
    )
    shot = Snapshot(10**9, 10**8, number, (*kernels, Kernel("q", "QLinearConv", "integer", True)))
    skips = [Skip(f"{'scope/' * 30}{i}", "Conv", f"range [{i}, {i + 1}]") for i in range(number)]
    step = Step("quantize.static", {"keep": ["x" * 50] * 1000}, changes=["did"] * number, skipped=skips)
    report = Report("m", "onnx", "cpu", "ort", "accepted", "ok", shot, shot, [step], decisions=["d"] * number)
    report.outputs = [OutputDiff(f"o{i}", 1, 1, 20.0, None, 4) for i in range(500)]
    return report


def rich_text(report: Report) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(render.rich_report(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Page(html.parser.HTMLParser):
    """Collects what a browser would act on, and checks that every tag is closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


EVERYTHING = [
    "declined: nothing that can go",
    "four times smaller", "net.onnx", "accepted", "16.00", "4.00", "4.00x smaller", "2.00x faster",
    "0.480", "0.520", "top1", "0.7500", "0.7422", "-0.0078", "31.2 dB", "98.4%", "fuse.inference",
    "required by a later step", "folded 6", "bits", "left alone: 8", "no integer kernel", "relu_0",
    "Stayed in float", "three input channels", "conv_4, conv_5", "conv_5 goes back to float",
    "opset raised from 11 to 21", "some cpu", "1.32.0",
]  # fmt: skip


@pytest.mark.parametrize("word", EVERYTHING)
def test_every_figure_and_reason_is_in_every_form(word: str) -> None:
    assert word in render.text(full_report())
    assert word in Page(render.html(full_report())).text
    assert word in " ".join(rich_text(full_report()).split())


def test_the_table_is_aligned_and_right() -> None:
    lines = render.text(full_report()).splitlines()
    top = next(i for i, line in enumerate(lines) if "before" in line and "after" in line)
    before, after = lines[top].index("before") + 6, lines[top].index("after") + 5
    cells = {}
    for line in lines[top + 1 : top + 11]:
        label = re.split(r"  +", line)[0]
        cells[label] = (line[:before].split()[-1], line[before:after].strip())
        assert line[before:after].endswith(cells[label][1])
    assert cells["size, MB"] == ("16.00", "4.00")
    assert cells["parameters"] == ("4,000,000", "4,000,000")
    assert cells["integer kernels"] == ("0", "4")
    assert cells["float compute kernels"] == ("6", "2")
    assert cells["other float kernels"] == ("0", "1")
    assert cells["conversion kernels"] == ("0", "1")
    assert cells["latency, ms"] == ("8.00", "4.00")


def test_the_worst_output_is_the_one_in_the_table() -> None:
    report = full_report()
    assert figures.worst_first(report.outputs)[0].name == "logits"
    report.outputs.append(OutputDiff("broken", math.nan, math.nan, math.nan, None, 64))
    assert figures.worst_first(report.outputs)[0].name == "broken"
    assert "undefined  broken" in render.text(report)


def test_what_was_not_measured_is_left_out() -> None:
    report = bare_report()
    for shown in (render.text(report), Page(render.html(report)).text, rich_text(report)):
        assert "did not pay" in shown
        for word in (
            "latency",
            "None",
            "nan",
            "kernels",
            "Decisions",
            "Notes",
            "Steps",
            "Environment",
            "SQNR",
        ):
            assert word not in shown
    report = dataclasses.replace(full_report(), speed=None)
    report.before = dataclasses.replace(report.before, metric=None)
    assert "0.7422" in render.text(report)
    assert "None" not in Page(render.html(report)).text


def test_kernels_without_times_have_no_chart() -> None:
    report = full_report()
    report.after = dataclasses.replace(
        report.after, kernels=tuple(dataclasses.replace(k, milliseconds=None) for k in report.after.kernels)
    )
    page = Page(render.html(report)).text
    assert "Where the time goes" not in page
    assert "were not profiled" in page
    assert "Slowest" not in render.text(report)


def test_the_chart_is_in_proportion() -> None:
    page = Page(render.html(full_report()))
    widths = {
        attrs["title"]: float(re.fullmatch(r"width:([\d.]+)%", attrs["style"] or "")[1])  # type: ignore[index]
        for tag, attrs in page.tags
        if tag == "span" and attrs.get("style") and attrs.get("title")
    }
    assert widths["conv_4"] == 100.0  # 0.75 ms, the slowest
    assert widths["conv_3_q"] == pytest.approx(100 * 0.5 / 0.75, abs=0.01)
    assert widths["integer: 1.25 ms"] == pytest.approx(100 * 1.25 / 2.3125, abs=0.01)


def test_a_float_model_is_not_told_that_its_kernels_stayed_float() -> None:
    report = full_report()
    floats = tuple(Kernel(f"c{i}", "Conv", "float", True) for i in range(3))
    report.after = dataclasses.replace(report.after, kernels=floats)
    assert "Stayed in float" not in render.text(report)
    report.after = dataclasses.replace(
        report.after, kernels=(*floats, Kernel("q", "QLinearConv", "integer", True))
    )
    assert "no reason recorded" in render.text(report)


def test_no_string_becomes_markup() -> None:
    text = render.html(evil_report())
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "h3",
            "p",
            "div",
            "span",
            "table",
            "tr",
        ),
        *("th", "td", "ul", "li", "header", "section", "details", "summary", "code", "i", "b", "sub"),
    }
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "{{ 7*7 }}" in page.text  # shown, not evaluated
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "<script>alert(1)</script>" in rich_text(evil_report())


def test_the_page_is_self_contained() -> None:
    text = render.html(full_report())
    page = Page(text)
    assert not re.search(r"(https?:)?//|@import|url\(|javascript:", text)
    assert all(key not in attrs for _, attrs in page.tags for key in ("src", "href", "srcset", "action"))
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_escape_sequences_in_names_do_not_reach_the_terminal() -> None:
    report = bare_report()
    report.model = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\ud800\0"
    report.headline = "line\r\nbreak [bold red]not markup[/]"
    for shown in (render.text(report), rich_text(report), render.html(report)):
        assert not set("\x1b\x07\r\0\u202e\ud800") & set(shown)
        assert "\\x1b[2J" in shown
        shown.encode("utf-8")
    assert "[bold red]not markup[/]" in rich_text(report)


def test_the_page_of_a_huge_model_stays_small() -> None:
    report = huge_report()
    page = render.html(report)
    assert len(page) < 2_000_000
    assert "18,001 more kernels" in Page(page).text
    assert "left alone: 20000" in Page(page).text
    assert len(render.text(report)) < 20_000
    assert len(rich_text(report)) < 40_000


def test_skips_are_grouped_by_reason_largest_first() -> None:
    groups = figures.grouped(full_report().steps[1].skipped)
    assert [(g.reason, g.ops, len(g.names)) for g in groups] == [
        ("no integer kernel", ("Relu",), 7),
        ("three input channels", ("Conv",), 1),
    ]
    assert groups[0].shown() == "relu_0, relu_1, relu_2 and 4 more"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.5, "2.00x faster"),
        (2.0, "2.00x slower"),
        (1.001, "same"),
        (0.0, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_ratios_in_words(ratio: float, words: str) -> None:
    assert figures.times(ratio, "faster", "slower") == words


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(AttarError, match=r"pip install attar\[report\]"):
        render.html(bare_report())
