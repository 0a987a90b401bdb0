"""Rights to the files of a SQLite database: the umask does not decide them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grokflask.storage.database import Database
from grokflask.storage.files import close_files, find_open_files, make_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def read_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277])
def test_what_is_made(tmp_path: Path, mask: int) -> None:
    """The file and each folder that was missing; folders that were there stay as they are."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    path = tmp_path / "there" / "deep" / "var" / "x.db"
    with umask(mask):
        make_file(path)
        make_file(path)
    modes = [read_mode(each) for each in (path, *path.parents[:3])]
    assert modes == [0o600, 0o700, 0o700, 0o755]


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    """Neither its contents nor its rights, and it is not opened: that would end SQLite's locks."""
    path = tmp_path / "x.db"
    path.write_text("something")
    path.chmod(0o000)
    make_file(path)
    assert read_mode(path) == 0
    path.chmod(0o644)
    assert path.read_text() == "something"


def test_what_is_closed(tmp_path: Path) -> None:
    """The rights of others to the four files of SQLite's; the owner's stay, and other files too."""
    path = tmp_path / "x.db"
    modes = {"": 0o644, "-wal": 0o666, "-shm": 0o600, "-journal": 0o440, ".bak": 0o644}
    for suffix, mode in modes.items():
        file = path.with_name(path.name + suffix)
        file.touch()
        file.chmod(mode)
    assert {each.name for each in find_open_files(path)} == {"x.db", "x.db-wal", "x.db-journal"}
    assert close_files(path) == []
    assert [read_mode(path.with_name(path.name + suffix)) for suffix in modes] == [
        0o600, 0o600, 0o600, 0o400, 0o644,
    ]  # fmt: skip


def test_what_cannot_be_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as another user's file: the database works, and the log warns."""
    path = tmp_path / "x.db"
    path.touch()
    path.chmod(0o644)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    database = Database(f"sqlite:///{path}")
    try:
        assert database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()) == 1
    finally:
        database.close()
    (record,) = [each for each in caplog.records if "other users" in each.message]
    assert str(path) in record.fields["files"]  # type: ignore[attr-defined]
