"""Checks local files: whether SQLite's locks work there, whether it is permanent, and who may read them."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from sqlalchemy import make_url

from grokflask.cli.doctor.findings import Finding
from grokflask.config import Settings
from grokflask.storage.files import OTHERS, find_open_files

NETWORK = ("nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "afs")
EPHEMERAL = ("tmpfs", "ramfs", "overlay", "aufs")
MIN_FREE_BYTES = 200 * 10**6
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
MOUNTS = Path("/proc/mounts")
DOTENV = Path(".env")


def check_place(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Checks the file system of a SQLite file and its free space. No finding for PostgreSQL."""
    if not settings.database_url.startswith("sqlite") or "DYNO" in environ:
        return  # check_database reports SQLite on Heroku
    path = _find_path(settings)
    found = judge_place(path, MOUNTS.read_text() if MOUNTS.exists() else "")
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
    if found.state == "ok" and free < MIN_FREE_BYTES:
        text = f"only {free // 10**6} MB are free where the SQLite file is"
        found = Finding("place", "warn", text, "Make room: on a full disk keys and rows cannot be written.")
    yield found


def check_modes(settings: Settings) -> Finding:
    """Checks that other users of this machine can neither read nor replace the SQLite file and `.env`."""
    finding = partial(Finding, "file modes")
    open_files = [DOTENV] if DOTENV.exists() and DOTENV.stat().st_mode & OTHERS else []
    if settings.database_url.startswith("sqlite"):
        path = _find_path(settings)
        open_files += find_open_files(path)
        mode = path.parent.stat().st_mode if path.parent.exists() else 0
        if mode & WRITABLE and not mode & stat.S_ISVTX:
            text = f"other users of this machine can replace files in {path.parent}"
            return finding("FAIL", text, f"chmod 700 {path.parent}")
    if not open_files:
        return finding("ok", "no other user of this machine can read the database or .env")
    names = " ".join(map(str, open_files))
    return finding("warn", f"other users of this machine have rights to {names}", f"chmod 600 {names}")


def _find_path(settings: Settings) -> Path:
    return Path(make_url(settings.database_url).database or "").absolute()


def judge_place(path: Path, mounts: str) -> Finding:
    """Whether a SQLite file can be at `path`. `mounts` has the format of /proc/mounts."""
    kind = find_filesystem(path, mounts)
    if kind in NETWORK:
        text = f"a SQLite file on a network file system ({kind}), where locks do not work"
        return Finding("place", "FAIL", text, "Put it on a disk of this machine, or use PostgreSQL.")
    if kind in EPHEMERAL:
        text = f"a SQLite file on {kind}: it may be gone after a restart or in a new container"
        return Finding("place", "warn", text, f"Put {path.parent} on a volume, or use PostgreSQL.")
    return Finding("place", "ok", "the SQLite file is on a disk of this machine")


def find_filesystem(path: Path, mounts: str) -> str:
    """The file system type of the longest mount point above `path`, or ""."""
    longest, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= longest:
            longest, kind = len(point), fields[2]
    return kind
