"""How long `import attar` takes: `python tests/benchmarks/import_time.py [RUNS]`.

Fresh interpreters, alternating with one that imports nothing, so that the interpreter's own start is taken
off. Prints the median and the range in seconds, and the costliest imports of one run.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall-clock time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def costliest(code: str, count: int = 10) -> list[tuple[float, str]]:
    """(own seconds, module), by `-X importtime`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True
    )
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    return sorted(((int(own) / 1e6, module) for own, module in rows), reverse=True)[:count]


def main(runs: int) -> None:
    """Measure and print."""
    code = "import attar"
    seconds(code)  # fills the disk cache and writes the byte code
    taken = [seconds(code) - seconds("pass") for _ in range(runs)]
    median, low, high = statistics.median(taken), min(taken), max(taken)
    print(f"{code}: median {median:.3f} s, {low:.3f} to {high:.3f}, {runs} runs")
    for own, module in costliest(code):
        print(f"  {own:.3f}  {module}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
