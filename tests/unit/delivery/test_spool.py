"""Bodies that wait in memory while they are small and in a file beyond that."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from grokflask.delivery.spool import MEMORY_BYTES, PIECE_BYTES, Spool
from grokflask.errors import DiskFullError


def fill(size: int, piece: int = 10_000) -> tuple[Spool, bytes]:
    """A spool with `size` bytes, given piece by piece, and these bytes."""
    data = os.urandom(1 + size // 7) * 7
    data = data[:size]
    spool = Spool()
    for place in range(0, size, piece):
        spool.append(data[place : place + piece])
    return spool, data


@pytest.mark.parametrize(
    "size", [0, 1, MEMORY_BYTES - 1, MEMORY_BYTES, MEMORY_BYTES + 1, 3 * MEMORY_BYTES + 7]
)
def test_what_goes_in_comes_out(size: int) -> None:
    """As often as it is read, at once or in pieces; pieces out of a file are small."""
    spool, data = fill(size)
    assert len(spool) == size
    for _ in range(2):
        pieces = list(spool)
        assert b"".join(pieces) == data
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    with spool.view() as view:
        assert view[:] == data
    spool.close()
    spool.close()


def test_in_one_large_piece() -> None:
    """However it comes, it goes out in small pieces."""
    spool, data = fill(3 * MEMORY_BYTES, 3 * MEMORY_BYTES)
    pieces = list(spool)
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) == PIECE_BYTES
    spool.close()


def test_a_part_that_is_still_held() -> None:
    """What was read out of the map may outlive it; closing does not fail."""
    spool = Spool()
    spool.append(b'{"usage": {"a": 1}, "data": "' + b"x" * (2 * MEMORY_BYTES) + b'"}')
    with spool.view() as view:
        fields = msgspec.json.decode(view, type=dict[str, msgspec.Raw])
    assert bytes(fields["usage"]) == b'{"a": 1}'
    spool.close()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has no name, where TMPDIR says."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spool, _ = fill(2 * MEMORY_BYTES)
    before = set(os.listdir("/proc/self/fd"))
    assert not list(tmp_path.iterdir())
    spool.close()
    assert len(before - set(os.listdir("/proc/self/fd"))) >= 1


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may have more than three megabytes: writing on fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("piece", [PIECE_BYTES, 4 * MEMORY_BYTES])
def test_a_full_disk(
    logged: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """It is logged with the directory, and an error each time; no descriptor stays open."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    spool = Spool()
    with pytest.raises(DiskFullError):
        for _ in range(100):
            spool.append(b"x" * piece)
    with pytest.raises(DiskFullError):
        spool.append(b"x" * piece)
    spool.close()
    spool.close()
    assert set(os.listdir("/proc/self/fd")) <= before
    line = logged.getvalue().splitlines()[0]
    assert "level=error" in line
    assert f"directory={tmp_path}" in line


def test_no_directory(logged: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where no file can be made at all."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    spool = Spool()
    with pytest.raises(DiskFullError):
        spool.append(b"x" * 2 * MEMORY_BYTES)
    spool.close()
    assert "level=error" in logged.getvalue()
