"""Bytes on their way through that are too many for memory: beyond a megabyte they wait in a temporary file.

The file has no name, lies where TMPDIR says, and is gone when it is closed, whatever happens to the process.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

MEMORY_BYTES = 2**20
"""So many at the most are held in memory."""

PIECE_BYTES = 64 * 1024


class Spool:
    """A body that has come, or is coming. It has one owner, who closes it; that may be done twice.

    Its size and its bytes stay the same however often it is read. Raises OSError when the disk is full.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        """Adds what has come."""
        self._size += len(data)
        if self._file is not None:
            _write(self._file, data)
            return
        self._parts.append(data)
        if self._size > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` closes it
            for part in self._parts:
                _write(self._file, part)
            self._parts = []

    def __iter__(self) -> Iterator[bytes]:
        """All of it, in pieces of PIECE_BYTES at the most where it lies in a file."""
        if self._file is None:
            yield from self._parts
            return
        place = 0
        while place < self._size:
            self._file.seek(place)
            piece = self._file.read(min(PIECE_BYTES, self._size - place))
            place += len(piece)
            yield piece

    @contextmanager
    def view(self) -> Iterator[bytes | mmap.mmap]:
        """All of it at once, for reading. Of a file it is a map of its pages: no memory of ours."""
        if self._file is None:
            yield b"".join(self._parts)
            return
        pages = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)
        try:
            yield pages
        finally:
            with suppress(BufferError):  # an error's frames still hold a part: it goes with them
                pages.close()

    def close(self) -> None:
        """Lets go of all of it."""
        self._parts = []
        if self._file is not None:
            self._file.close()


def _write(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:  # a system call may take less than it is given
        left = left[file.write(left) :]
