"""Which operators each framework can say: ONNX's node tests through every adapter, and docs/coverage.md.

    python tests/benchmarks/coverage.py            all installed frameworks, writes the page
    python tests/benchmarks/coverage.py torch      one framework, prints only
    python tests/benchmarks/coverage.py --back     also reads what was written back into the IR

A case counts as passed when the framework gives the recorded outputs within ONNX's own tolerance. `wrong`
must always be 0: what a framework cannot say is refused before anything is handed out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from attar.registry import default_registry
from attar.testing.node_suite import NodeCase, Tally, node_cases, run_suite

FRAMEWORKS = ("torch", "tensorflow", "mxnet")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
HEAD = """# Operator coverage

Made by `python tests/benchmarks/coverage.py`, which sends each of ONNX's node tests (first input float32,
every other input a constant) through every adapter: the IR is written as a native model, the model is run in
its framework, and its outputs are compared with those that ONNX recorded. *core* are the operators of
convolutional networks, transformers and recurrent networks. What a framework cannot say exactly is refused
with a `ConversionError` that names the nodes; the last column counts wrong answers. The suite
is part of attar, for adapters and lowerings of your own:

```python
from attar.registry import default_registry
from attar.testing.node_suite import node_cases, run_suite

registry = default_registry()
cases = [case for case in node_cases() if case.op in ("Conv", "MaxPool", "LSTM")]
tally = run_suite(registry.get_adapter("torch"), cases, registry=registry)
assert tally.of("wrong", "broken") == []
print(tally.count("passed"), "of", len(cases))
```

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "frameworks", nargs="*", help="adapters to run; all three, and the page, unless given"
    )
    parser.add_argument("--back", action="store_true", help="import what was exported, and compare that too")
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    arguments = parser.parse_args()
    registry = default_registry()
    cases = [c for c in node_cases() if arguments.match in c.name]
    tallies = {}
    for name in arguments.frameworks or FRAMEWORKS:
        start = time.perf_counter()
        tally = run_suite(registry.get_adapter(name), cases, registry=registry, back=arguments.back)
        tallies[name] = tally
        print(f"{name}: {line(tally, cases)} in {time.perf_counter() - start:.0f} s", flush=True)
        for outcome in tally.of("wrong", "broken"):
            print(f"  {outcome.verdict} {outcome.case.name}: {outcome.detail[:200]}")
    if not arguments.frameworks and not arguments.match and not arguments.back:
        PAGE.write_text(page(tallies, cases))
        print(f"wrote {PAGE}")
    sys.exit(any(t.of("wrong", "broken") for t in tallies.values()))


def line(tally: Tally, cases: list[NodeCase]) -> str:
    core = sum(c.core for c in cases)
    verdicts = ", ".join(f"{v} {tally.count(v)}" for v in ("refused", "wrong", "broken"))
    passed, of_core = tally.count("passed"), tally.count("passed", core=True)
    return f"passed {passed} of {len(cases)}, {of_core} of {core} core; {verdicts}"


def page(tallies: dict[str, Tally], cases: list[NodeCase]) -> str:
    core = sum(c.core for c in cases)
    lines = [f"| | all {len(cases)} | core {core} | refused | wrong |", "| --- | --- | --- | --- | --- |"]
    for name, tally in tallies.items():
        figures = (tally.count("passed"), tally.count("passed", core=True), tally.count("refused"))
        wrong = tally.count("wrong") + tally.count("broken")
        lines.append(f"| {name} | " + " | ".join(map(str, (*figures, wrong))) + " |")
    lines += ["", "Cases passed by operator:", "", "| operator | cases | " + " | ".join(tallies) + " |"]
    lines.append("| --- " * (2 + len(tallies)) + "|")
    total = Counter(c.op for c in cases)
    passed: dict[str, Counter[str]] = defaultdict(Counter)
    for name, tally in tallies.items():
        passed[name].update(o.case.op for o in tally.of("passed"))
    is_core = {c.op: c.core for c in cases}
    for op in sorted(total):
        cells = [f"{passed[name][op] or '-'}" for name in tallies]
        lines.append(f"| {f'**{op}**' if is_core[op] else op} | {total[op]} | " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
