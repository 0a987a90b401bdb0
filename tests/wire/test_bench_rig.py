"""The benchmarks' upstream and load generator, against each other: what they count must be true."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from support.processes import wait_for


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both programs, compiled without a warning. CI must have a compiler; elsewhere the tests are skipped."""
    if not shutil.which(os.environ.get("CC", "gcc")) and not os.environ.get("CI"):
        pytest.skip("there is no gcc (on Debian and Ubuntu: apt install build-essential)")
    folder = tmp_path_factory.mktemp("rig")
    assert rig.build(folder) == ""
    return folder


@pytest.fixture
def upstream(programs: Path) -> Iterator[rig.Upstream]:
    server = rig.Upstream(programs)
    yield server
    server.close()


@pytest.mark.parametrize(
    ("load", "events"),
    [
        (rig.Load("bench-1-0-8", 4, 50, stream=False), 50),
        (rig.Load("bench-512-0-100", 4, 20, stream=True), 20 * 512),
        (rig.Load("bench-5-2000-8", 10, 10, stream=True, ramp_us=500), 50),
    ],
)
def test_every_event_comes(programs: Path, upstream: rig.Upstream, load: rig.Load, events: int) -> None:
    """Whole replies, events at once, paced events: all arrive, and both ends count the same."""
    found = rig.Clients(programs, rig.Target(upstream.port), load).wait()
    stats = upstream.read_stats()
    assert (found["replies"], found["errors"], found["events"]) == (load.replies, 0, events), found
    assert stats["requests"] == load.replies
    assert stats["events"] == (events if load.stream else 0)
    assert (stats["open"], stats["early_closes"]) == (0, 0)
    assert 0 <= found["delay_us"]["p50"] <= found["delay_us"]["p99"] <= found["delay_us"]["max"]


def test_a_deadline_ends_it(programs: Path, upstream: rig.Upstream) -> None:
    """Streams that are still open then are errors, and the upstream sees them leave early."""
    load = rig.Load("bench-9-60000000-8", 3, 3, stream=True, deadline_s=2)
    found = rig.Clients(programs, rig.Target(upstream.port), load).wait()
    assert (found["replies"], found["errors"], found["events"]) == (0, 3, 3)
    wait_for(lambda: upstream.read_stats()["early_closes"] == 3, "the upstream to notice")
    assert upstream.read_stats()["open"] == 0


def make_event(number: int) -> str:
    return f'data: {{"choices":[{{"delta":{{"content":"t={number}:1 x"}}}}]}}\n\n'


DONE = "data: [DONE]\n\n"
BAD_STREAMS = {
    "missing": make_event(0) + make_event(2) + DONE,
    "reordered": make_event(1) + make_event(0) + make_event(2) + DONE,
    "doubled": make_event(0) + make_event(0) + make_event(1) + make_event(2) + DONE,
    "short": make_event(0) + make_event(1) + DONE,
    "without an end": make_event(0) + make_event(1) + make_event(2),
    "an error": make_event(0) + make_event(1) + make_event(2) + 'data: {"error":"x"}\n\n' + DONE,
}
GOOD_STREAM = ": a comment\n\n" + make_event(0) + make_event(1) + make_event(2) + DONE


@pytest.mark.parametrize(
    ("text", "errors"),
    [(GOOD_STREAM, 0), *((text, 1) for text in BAD_STREAMS.values())],
    ids=["good", *BAD_STREAMS],
)
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_a_wrong_stream_is_an_error(programs: Path, text: str, errors: int, piece: int) -> None:
    """Whatever the chunks are, the clients find what is missing, out of order, doubled or unfinished."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_once, args=(server, text.encode(), piece))
        thread.start()
        target = rig.Target(server.getsockname()[1])
        found = rig.Clients(
            programs, target, rig.Load("bench-3-0-8", 1, 1, stream=True, deadline_s=30)
        ).wait()
        thread.join()
    assert found["errors"] == errors, found


def answer_once(server: socket.socket, body: bytes, piece: int) -> None:
    """One reply in chunks of `piece` bytes."""
    connection, _ = server.accept()
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    with connection, contextlib.suppress(OSError):  # a client that has seen enough leaves
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in pieces:
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
