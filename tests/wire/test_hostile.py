"""Every attack that is known, five at once, beside fifty streams of others, which must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.attacks import list_attacks
from support.paced import PacedStream, PacedStreams
from support.processes import ROOT, GatewayServer, wait_for
from support.stores import ADMIN_TOKEN, KeyedGateway

STREAMS, AT_ONCE, SEED = 50, 5, 14
STALL_S = 1.0  #: the longest gap of a stream beyond upstream's own
GROWTH_KIB = 96 * 1024
"""glibc may keep up to 64 MiB of free memory at the end of its heap, once large blocks have been freed. The
rest is for answers and keys that are remembered, and holes in the heap."""
PATIENT, HOSTILE = "patient-streams-secret-01", "hostile-holder-secret-02"


def test_there_are_enough_attacks() -> None:
    """At least sixty, each with a name of its own."""
    names = [attack.name for attack in list_attacks()]
    assert len(set(names)) == len(names) >= 60


def test_a_stall_is_seen() -> None:
    """A gap counts beyond upstream's own, and beyond what the processes waited for a processor meanwhile."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        paced = PacedStreams(ours)
        paced.close()
    paced.streams = [PacedStream([0.0, 1.0, 2.0], [(0, 0.0), (1, 1.0), (2, 6.0)])]
    assert paced.find_stall() == (4.0, 6.0, 0)
    paced.waits = [(-1.0, 0.0), (0.5, 10.0), (1.0, 10.0), (6.5, 11.0)]
    assert paced.find_stall() == (3.0, 6.0, 0)


def test_nobody_notices(make_keyed: Callable[..., KeyedGateway], tmp_path: Path) -> None:
    """Each attack is answered as it should be; no stream stands still, and nothing is left behind."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asyncio.run(_attack(make_keyed, ours, theirs, tmp_path))


async def _attack(
    make_keyed: Callable[..., KeyedGateway], ours: socket.socket, theirs: socket.socket, folder: Path
) -> None:
    paced = PacedStreams(ours)
    keys = f"patient:{PATIENT},hostile:{HOSTILE}"
    keyed = await asyncio.to_thread(make_keyed, XAI_API_BASE=paced.base_url, GROKFLASK_KEYS=keys)
    server, (worker,) = keyed.server, find_workers(keyed.server)
    paced.serve()
    paced.watch(worker)
    try:
        await paced.open(server.port, PATIENT, STREAMS)  # what the gateway keeps from now on, it keeps anyway
        await run_attacks(server, theirs, folder, "replay:|forms: 100|pages:")
        await paced.end()
        await asyncio.to_thread(wait_until_idle, keyed)
        memory, files = read_memory_kib(worker), count_files(worker)
        await paced.open(server.port, PATIENT, STREAMS)
        seen = await run_attacks(server, theirs, folder, "")
        await paced.end()
        await asyncio.to_thread(wait_until_idle, keyed)
        await paced.open(server.port, PATIENT, 1)  # and life goes on
        await paced.end()
    finally:
        paced.close()
    stall_s, stalled_at, stalled = paced.find_stall()
    report(seen, stalled_at)
    print(f"{len(seen)} attacks; longest stall {stall_s:.2f} s, of stream {stalled}")
    with contextlib.suppress(OSError):
        after = (read_memory_kib(worker), count_files(worker))
        print(f"KiB of memory and descriptors before {(memory, files)}, after {after}")
    assert [each for each in seen if not each["fine"]] == []
    assert [number for number, stream in enumerate(paced.streams) if not stream.is_whole] == []
    assert stall_s < STALL_S
    assert find_workers(server) == [worker], "the worker was killed"
    assert re.findall(r".*(?:Traceback|unexpected failure|code=internal_error).*", server.log) == []
    wait_for(lambda: read_memory_kib(worker) < memory + GROWTH_KIB, "memory to be given back")
    wait_for(lambda: count_files(worker) <= files + 2, "descriptors to be closed")


async def run_attacks(
    server: GatewayServer, upstream: socket.socket, folder: Path, only: str
) -> list[dict[str, Any]]:
    """What the attacks saw whose names match `only`."""
    command = [sys.executable, "-m", "support.attacks", "--port", str(server.port)]
    command += ["--upstream", str(upstream.fileno()), "--seed", str(SEED), "--at-once", str(AT_ONCE)]
    command += ["--key", HOSTILE, "--admin", ADMIN_TOKEN, "--only", only]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[upstream.fileno()],
    )
    try:
        out, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


def wait_until_idle(keyed: KeyedGateway) -> None:
    """Returns when no exchange is open."""
    wait_for(lambda: keyed.read_ready()["open"] == 0, "the open exchanges to end")


def find_workers(server: GatewayServer) -> list[int]:
    """The children of gunicorn's master."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(word) for word in path.read_text().split()]


def read_memory_kib(pid: int) -> int:
    """The memory that a process alone has, without the pages of files."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def count_files(pid: int) -> int:
    """Open descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def report(seen: list[dict[str, Any]], stalled_at: float) -> None:
    """Prints what happened, for a test that fails. `!` marks what ran beside the longest stall."""
    for each in sorted(seen, key=lambda each: each["start"]):
        mark = "!" if each["start"] - 1 < stalled_at < each["end"] + 1 else " "
        wanted = "" if each["fine"] else f"   WANTED {each['expects']}"
        print(f"{mark} {each['end'] - each['start']:6.1f} s  {each['name']}: {each['saw']}{wanted}")
