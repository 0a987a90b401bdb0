"""Checks the file system of a SQLite file: whether locks work there, and whether it is permanent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from sqlalchemy import make_url

from grokflask.cli.doctor.findings import Finding
from grokflask.config import Settings

NETWORK = ("nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "afs")
EPHEMERAL = ("tmpfs", "ramfs", "overlay", "aufs")
MIN_FREE_BYTES = 200 * 10**6
MOUNTS = Path("/proc/mounts")


def check_place(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Checks the file system of a SQLite file and its free space. No finding for PostgreSQL."""
    if not settings.database_url.startswith("sqlite") or "DYNO" in environ:
        return  # check_database reports SQLite on Heroku
    path = Path(make_url(settings.database_url).database or "").absolute()
    found = judge_place(path, MOUNTS.read_text() if MOUNTS.exists() else "")
    free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
    if found.state == "ok" and free < MIN_FREE_BYTES:
        text = f"only {free // 10**6} MB are free where the SQLite file is"
        found = Finding("place", "warn", text, "Make room: on a full disk keys and rows cannot be written.")
    yield found


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
