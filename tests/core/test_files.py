"""Atomic writes: the old content or the new, never a mixture, and nothing left behind."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import pytest

from attar.errors import InputError
from attar.files import replacing, write_atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as part:
            part.write_bytes(b"half of the new con")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_old_content_stands_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with replacing(path) as part:
        assert part.parent == path.parent, "a rename between file systems would not be one step"
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_mapped_file_keeps_its_content_when_replaced(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(b"old" * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        write_atomic(path, b"new")
        assert view[:6] == b"oldold"
        assert len(view) == 3000


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "model.onnx", tmp_path / "latest.onnx"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["model.onnx"]


def test_long_names_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "bad", ["missing/model.onnx", "a-file/model.onnx", "a-folder", "nul\0byte", "n" * 300]
)
def test_what_cannot_be_written_is_an_input_error_that_names_it(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a-file").write_bytes(b"")
    (tmp_path / "a-folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / bad, b"x")
    assert sorted(tmp_path.iterdir()) == before


def test_errors_of_the_writer_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        1 / 0  # noqa: B018
    assert [p.name for p in tmp_path.iterdir()] == []
