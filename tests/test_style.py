"""The tools that keep the style, the types and the direction of the dependencies, as tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy", "--strict", "core"],
    "imports": ["lint-imports"],
}


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS.keys())
def test_style(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_no_file_grows_beyond_one_idea() -> None:
    sources = [p for folder in ("core", "plugins", "adapters") for p in (ROOT / folder).rglob("*.py")]
    assert sources
    assert [str(p) for p in sources if len(p.read_text(encoding="utf-8").splitlines()) > 350] == []
