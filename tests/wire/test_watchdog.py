"""What holds up a real worker's event loop is in its log and its metrics."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from support.figures import parse_figures
from support.processes import GUNICORN, ROOT, GatewayServer, wait_for
from support.scripted import WAIT_S
from support.stores import ADMIN, ADMIN_TOKEN

LOOP = "grokflask_loop_delay_seconds"
TROUBLED = Path(ROOT, "tests/support/troubled_wsgi.py")
BLOCK_S = 1.0

StartTroubled = Callable[..., GatewayServer]


@pytest.fixture
def start_troubled(tmp_path: Path) -> Iterator[StartTroubled]:
    """Real gunicorn on the sandbox, with the app of `support.troubled_wsgi`."""
    servers: list[GatewayServer] = []

    def start(*options: str) -> GatewayServer:
        env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN}
        command = [*GUNICORN, *options, "-b", "127.0.0.1:{port}", "support.troubled_wsgi:app"]
        servers.append(GatewayServer(tmp_path, env, command))
        return servers[-1]

    yield start
    for server in servers:
        server.leave()


def count_delays(server: GatewayServer) -> tuple[int, int]:
    """How many samples of the loop's delay there are, and how many of them are stalls."""
    figures = parse_figures(requests.get(f"{server.url}/metrics", headers=ADMIN, timeout=WAIT_S).text)
    number = figures[f"{LOOP}_count"]
    return int(number), int(number - figures[f"{LOOP}_bucket{{le=0.25}}"])


def find_lines(name: str) -> range:
    """The lines of a function of `support.troubled_wsgi`, which only a worker can import."""
    lines = TROUBLED.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith(f"def {name}("))
    return range(first, first + len(inspect.getblock([f"{line}\n" for line in lines[first - 1 :]])))


def check_place(line: str, function: str) -> None:
    """The line of the log names a line of that function."""
    found = re.search(rf'line="{TROUBLED}:(\d+) {function}"', line)
    assert found, line
    assert int(found[1]) in find_lines(function), line


@pytest.mark.parametrize(("how", "works"), [("spin", True), ("sleep", False), ("hold", False)])
def test_a_stall_is_logged_and_counted(start_troubled: StartTroubled, how: str, works: bool) -> None:
    """With its request, the line of code and its CPU time, whether it computes, waits or holds Python."""
    server = start_troubled()
    _, before = count_delays(server)
    url = f"{server.url}/trouble/block/{how}?seconds={BLOCK_S}"
    found: list[str] = []
    for number in range(1, 6):  # on a busy machine a stall that holds Python can be taken for one of the CPU
        known = len(server.find_lines("logger=grokflask.loop"))
        assert requests.get(url, headers={"X-Request-ID": f"stall-{number}"}, timeout=WAIT_S).ok
        wait_for(lambda known=known: len(server.find_lines("logger=grokflask.loop")) > known, "a stall")
        if found := server.find_lines("the event loop stalled", f"request_id=stall-{number}"):
            break
    (line,) = found
    assert "level=warning" in line
    check_place(line, how)
    ms, cpu_ms = (int(number) for number in re.findall(r"ms=(\d+)", line))
    assert ms >= 1000 * BLOCK_S
    assert 0 <= cpu_ms <= ms
    assert works or cpu_ms < 500 * BLOCK_S
    _, after = count_delays(server)
    assert after - before >= 1
    assert after == len(server.find_lines("logger=grokflask.loop", "the event loop"))
    state = requests.get(f"{server.url}/ready", headers=ADMIN, timeout=WAIT_S).json()["loop"]
    assert state["stalls"] == after
    assert state["worst_ms"] >= ms
    page = requests.get(f"{server.url}/metrics", headers=ADMIN, timeout=WAIT_S)
    assert f"{LOOP}_bucket" in page.text


def test_a_worker_that_waits_has_no_stall(start_troubled: StartTroubled) -> None:
    """Neither an idle one, nor one beside four busy processes: nothing of ours holds up its loop."""
    server = start_troubled()
    number, _ = count_delays(server)
    warned = len(server.find_lines("the event loop stalled"))
    with ExitStack() as stack:
        for busy in (0, 4):
            for _ in range(busy):
                process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                stack.callback(process.wait)
                stack.callback(process.kill)
            most = number + 20
            wait_for(lambda most=most: count_delays(server)[0] >= most, "20 samples")  # type: ignore[misc]
            number, _ = count_delays(server)
    assert len(server.find_lines("the event loop stalled")) == warned


def test_a_long_stall_is_logged_while_it_lasts(start_troubled: StartTroubled, tmp_path: Path) -> None:
    """It ends only after the line was seen."""
    server = start_troubled()
    path = tmp_path / "end"
    url = f"{server.url}/trouble/until?path={path}"
    with subprocess.Popen(["curl", "-s", "-H", "X-Request-ID: stall-2", url], stdout=subprocess.DEVNULL):
        try:
            server.wait_for_line("the event loop is stalled", "request_id=stall-2", "level=error")
        finally:
            path.touch()
    (line,) = server.find_lines("the event loop is stalled")
    check_place(line, "wait_for_file")
    server.wait_for_line("the event loop stalled", "request_id=stall-2")


def test_an_aborted_worker_leaves_its_stack(start_troubled: StartTroubled) -> None:
    """When the master gives it up, also if it holds Python; the next worker answers."""
    server = start_troubled("-t", "2")
    url = f"{server.url}/trouble/block/hold?seconds=600"
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=WAIT_S)
    assert requests.get(f"{server.url}/health", timeout=WAIT_S).ok
    lines = [line for line in server.log.splitlines() if str(TROUBLED) in line and "in hold" in line]
    assert lines, server.log
    number = re.search(r"line (\d+)", lines[0])
    assert number
    assert int(number[1]) in find_lines("hold")
