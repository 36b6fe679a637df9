"""The code in the documentation runs.

The ```python blocks of one page are run top to bottom, in one namespace, in an empty folder. Blocks marked
`no-run` are compiled only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITHOUT_CODE = {"docs/architecture.md", "docs/dependencies.md"}
TIME_LIMIT = 300


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the number of its first line of code."""

    language: str
    marks: tuple[str, ...]
    line: int
    code: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page. A fence may be indented, as in a list."""
    found: list[Block] = []
    fence, start, info = "", 0, ""
    lines = page.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"\s*(`{3,}|~{3,})\s*(.*)$", line)
        if not match:
            continue
        if not fence:
            fence, start, info = match[1], number + 1, match[2].strip()
        elif match[1].startswith(fence) and not match[2]:
            words = info.split() or [""]
            code = textwrap.dedent("\n".join(lines[start:number]))
            found.append(Block(words[0], tuple(words[1:]), start + 1, code))
            fence = ""
    assert not fence, f"the fence of line {start} is never closed"
    return found


def script(page: str) -> str:
    """A program with the page's code on the lines where the page has it: a traceback points into the page."""
    lines = [""] * len(page.splitlines())
    for block in blocks(page):
        if block.language == "python" and "no-run" not in block.marks:
            for offset, line in enumerate(block.code.splitlines()):
                lines[block.line - 1 + offset] = line
    return "\n".join(lines) + "\n"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_compiles(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        assert set(block.marks) <= {"no-run"}, f"{name(page)}:{block.line}: unknown mark in {block.marks}"
        if block.language == "python":
            compile("\n" * (block.line - 1) + block.code, name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    code = script(page.read_text(encoding="utf-8"))
    listed = name(page) in WITHOUT_CODE
    assert bool(code.strip()) != listed, "WITHOUT_CODE lists exactly the pages without runnable code"
    if not code.strip():
        return
    program = tmp_path / page.name.replace(".md", "_md.py")
    program.write_text(code, encoding="utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # One thread: two that wait for each other on a busy machine take several times as long.
    # -P keeps the program's own folder off sys.path; a page sees what is installed and nothing else.
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore::DeprecationWarning", str(program)],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    told = f"{name(page)}; line numbers are the page's\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert done.returncode == 0, told


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (page.parent / target.split("#")[0]).exists():
                dead.append(f"{name(page)}: {target}")
    assert dead == []


def test_the_first_page_leads_to_every_page() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]}
    linked = re.findall(r"\]\(([\w./-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert pages - {"index.md"} <= set(linked)


PAGE = """\
text
```python
x = 1
```
- in a list
  ```python
  def f():
      return x
  ```
```python no-run
raise SystemExit(3)
```
````markdown
```python
inside another fence
```
````
```sh
exit 1
```
"""


def test_blocks_are_found_with_their_lines() -> None:
    assert [(b.language, b.marks, b.line, b.code) for b in blocks(PAGE)] == [
        ("python", (), 3, "x = 1"),
        ("python", (), 7, "def f():\n    return x"),
        ("python", ("no-run",), 11, "raise SystemExit(3)"),
        ("markdown", (), 14, "```python\ninside another fence\n```"),
        ("sh", (), 19, "exit 1"),
    ]


def test_the_script_keeps_line_numbers_and_leaves_out_what_must_not_run() -> None:
    lines = script(PAGE).splitlines()
    assert [(i, line) for i, line in enumerate(lines, 1) if line] == [
        (3, "x = 1"),
        (7, "def f():"),
        (8, "    return x"),
    ]


def test_an_open_fence_is_an_error() -> None:
    with pytest.raises(AssertionError, match="line 2 is never closed"):
        blocks("text\n```python\nx = 1\n")
