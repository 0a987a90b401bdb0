"""The files of a SQLite database: no other user of this machine may read them, whatever the umask is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
OTHERS = 0o077
"""The rights of the group and of all others."""


def make_file(path: Path) -> None:
    """Makes an empty file, and the folders above it that are missing. A file that exists is left alone.

    SQLite gives its log and index the rights of this file. Raises OSError.
    """
    for folder in [each for each in reversed(path.absolute().parents) if not each.exists()]:
        with suppress(FileExistsError):  # another process was faster
            folder.mkdir(FOLDER_MODE)
            _set_mode(folder, FOLDER_MODE)
    with suppress(FileExistsError):  # it must not be opened: closing it would end this process's locks
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))
        _set_mode(path, FILE_MODE)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(OSError):  # a file system without modes
        path.chmod(mode)


def find_open_files(path: Path) -> list[Path]:
    """The file, its log, index and journal, as far as they exist and others have rights to them."""
    found = []
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        with suppress(OSError):  # a journal may vanish at any moment
            if file.stat().st_mode & OTHERS:
                found.append(file)
    return found


def close_files(path: Path) -> list[Path]:
    """Takes these rights away, and returns the files for which that failed.

    So does a folder that has nothing else in it.
    """
    folder = path.absolute().parent
    with suppress(OSError):  # it is not there
        if all(each.name.startswith(path.name) for each in folder.iterdir()):
            folder.chmod(folder.stat().st_mode & FOLDER_MODE)
    for file in find_open_files(path):
        with suppress(OSError):  # another user's
            file.chmod(file.stat().st_mode & FILE_MODE)
    return find_open_files(path)
