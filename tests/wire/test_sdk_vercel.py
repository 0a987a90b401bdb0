"""Vercel's AI SDK, whose xAI provider speaks Responses only, in real Node against real gunicorn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import ROOT, UPSTREAM_KEY
from support.stores import KeyedGateway

from grokflask.sandbox import Sandbox

SCRIPT = ROOT / "tests" / "node" / "xai.mjs"
NODE = Path(sys.executable).parent / "node"
MODULES = SCRIPT.parent / "node_modules"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator without pauses, with the one key that it takes."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def gateway(make_keyed: Callable[..., KeyedGateway], sandbox: Sandbox) -> KeyedGateway:
    """A gateway in front of the sandbox."""
    return make_keyed(XAI_API_BASE=sandbox.base_url)


def run_script(gateway: KeyedGateway) -> dict[str, Any]:
    """What the script prints."""
    assert MODULES.is_dir(), "the SDK is not installed: run 'make .venv/node'"
    key = gateway.make_key("ann")["Authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        [str(NODE), str(SCRIPT)],
        env={"PATH": os.environ["PATH"], "BASE_URL": f"{gateway.url}/v1", "KEY": key},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_vercels_sdk(gateway: KeyedGateway, sandbox: Sandbox) -> None:
    """Text, reasoning, tools of the client's and of xAI's, caps, cuts and errors; paid to the tick."""
    told = run_script(gateway)
    whole, streamed = told["whole"], told["streamed"]
    assert whole["text"] == streamed["text"] != ""
    assert whole["reasoning"] == streamed["reasoning"] != ""
    assert whole["finish"] == streamed["finish"] == "stop"
    assert whole["tokens"] == streamed["tokens"] > 0
    for step in ("streamed", "called", "searched", "unstored", "short"):
        assert told[step]["errors"] == []
    for call in ("called", "generated"):
        assert told[call]["steps"] == 2
        assert "It is sunny in Berlin." in told[call]["text"]
    assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(told["called"]["types"])
    assert "tool-call" in told["searched"]["types"]
    assert told["unstored"]["reasoning"]
    assert told["short"]["finish"] == "length"
    for cut, message in (("cut", "before it was complete"), ("broken", "incomplete")):
        assert [message in error for error in told[cut]["errors"]] == [True]
        assert "error" in told[cut]["types"]
    assert told["wrongKey"]["isApiError"]
    assert told["wrongKey"]["status"] == 401
    assert "Invalid API key" in told["wrongKey"]["message"]
    assert told["noCredits"]["status"] == 403
    assert "credits" in told["noCredits"]["message"]

    noted = {
        each.request_id: each for each in sandbox.journal.wait_until_idle() if each.outcome == "complete"
    }
    rows = gateway.wait_for_rows(len(sandbox.journal))
    paid = {row["upstream_request_id"]: row["cost_ticks"] for row in rows if row["outcome"] == "complete"}
    assert paid == {request_id: each.cost_ticks for request_id, each in noted.items()}
    assert sum(row["server_tools"] or 0 for row in rows) == 1
    assert {row["outcome"] for row in rows} == {"complete", "truncated", "upstream_error"}
