"""Bodies in transit: in memory up to a megabyte, in a temporary file beyond that.

The file is in TMPDIR and has no name. The system deletes it with its last descriptor, even after a crash.
"""

from __future__ import annotations

import errno
import logging
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from grokflask.errors import DiskFullError, GatewayFullError

MEMORY_BYTES = 2**20
PIECE_BYTES = 64 * 1024

_log = logging.getLogger("grokflask.spool")


class Spool:
    """A body that has arrived, or is arriving. It has one owner, who closes it; closing twice is harmless.

    It can be read repeatedly.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 - `close` closes it
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def in_memory(self) -> bool:
        """The whole body is in memory."""
        return self._size <= MEMORY_BYTES

    def append(self, data: bytes) -> None:
        """Adds bytes at the end, before the first read. Raises DiskFullError and GatewayFullError."""
        try:
            self._file.write(data)
            self._size += len(data)
            if not self.in_memory:
                self._file.flush()  # a full disk must be an error here, not where the body is read
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # no descriptors: that passes
                raise GatewayFullError from None
            fields = {"directory": tempfile.tempdir, "detail": str(error)}
            _log.error("a body does not fit into the directory for temporary files", extra={"fields": fields})
            raise DiskFullError from None

    def read(self) -> bytes:
        """The whole body, in memory."""
        self._file.seek(0)
        return self._file.read()

    def __iter__(self) -> Iterator[bytes]:
        """The whole body, in pieces of at most PIECE_BYTES."""
        place = 0
        while place < self._size:
            self._file.seek(place)
            piece = self._file.read(PIECE_BYTES)
            if not piece:
                raise OSError(f"a temporary file ended after {place} of {self._size} bytes")
            place += len(piece)
            yield piece

    @contextmanager
    def view(self) -> Iterator[bytes | mmap.mmap]:
        """The whole body at once, for reading. A file is mapped, which takes no memory of the process."""
        if self.in_memory:
            yield self.read()
            return
        self._file.flush()
        pages = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)
        try:
            yield pages
        finally:
            with suppress(BufferError):  # a traceback may still hold a part; the map goes with it
                pages.close()

    def close(self) -> None:
        """Frees it."""
        with suppress(OSError):  # bytes that found no room on the disk
            self._file.close()
