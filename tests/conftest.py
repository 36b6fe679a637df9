"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def attar_data() -> Path:
    """The folder of real trained models and labelled data; too large, and of too many licences, to ship.

    `ATTAR_DATA` names it; by default it is `shared/data` beside the repository.
    """
    folder = Path(os.environ.get("ATTAR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real models and data in {folder} (set ATTAR_DATA)")
    return folder
