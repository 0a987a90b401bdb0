"""One entry for each exchange, and one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from grokflask.errors import InvalidRequestError, Outcome, UpstreamStatusError, UpstreamTimeoutError
from grokflask.ledger.entry import LedgerEntry
from grokflask.ledger.row import LedgerRow
from grokflask.protocol.usage import Settlement, Usage


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """The records of `grokflask.exchange`."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("grokflask.exchange")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def make_entry(**changes: Any) -> LedgerEntry:
    row = LedgerRow("0", "r1", "alice", "chat", "grok-4.3", 1_790_000_000.0, stream=True)
    return LedgerEntry(replace(row, **changes), 10.0, clock=lambda: 12.5)


def read_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = vars(record)["fields"]
    return fields


def test_line_of_a_complete_exchange(lines: list[logging.LogRecord]) -> None:
    """Everything that is known about an exchange stands in its line, in milliseconds, tokens and ticks."""
    entry = make_entry()
    entry.note_head({"x-upstream-request-id": "u1"}, False)
    usage = Usage(12, 11, 1, 290, 303, 1466250)
    entry.settle(Settlement(Outcome.COMPLETE, None, usage, "grok-4.3-x", 7, 900, 0.1234))
    (line,) = lines
    assert line.getMessage() == "exchange"
    assert read_fields(line) == {
        "request_id": "r1",
        "key": "alice",
        "route": "chat",
        "model": "grok-4.3",
        "model_served": "grok-4.3-x",
        "stream": True,
        "status": 200,
        "outcome": "complete",
        "code": None,
        "events": 7,
        "bytes_out": 900,
        "ttft_ms": 123,
        "duration_ms": 2500,
        "prompt_tokens": 12,
        "cached_tokens": 11,
        "completion_tokens": 1,
        "reasoning_tokens": 290,
        "total_tokens": 303,
        "cost_ticks": 1466250,
        "server_tools": None,
        "reached": None,
        "upstream_request_id": "u1",
        "retries": None,
        "detail": None,
        "estimated": None,
    }


def test_zero_is_written_and_unknown_is_none(lines: list[logging.LogRecord]) -> None:
    """A cost of nothing is a figure; no usage at all is not."""
    make_entry().settle(Settlement(Outcome.COMPLETE, usage=Usage(cost_ticks=0, prompt_tokens=0)))
    make_entry(stream=False).settle(Settlement(Outcome.CLIENT_ABORT))
    known, unknown = (read_fields(line) for line in lines)
    assert (known["cost_ticks"], known["prompt_tokens"], known["total_tokens"]) == (0, 0, None)
    assert (unknown["cost_ticks"], unknown["ttft_ms"], unknown["events"]) == (None, None, None)
    assert unknown["outcome"] == "client_abort"


def test_error_inside_a_stream(lines: list[logging.LogRecord]) -> None:
    """The client got a 200, and the line says by its code what happened then."""
    entry = make_entry()
    entry.settle(Settlement(Outcome.TIMEOUT, UpstreamTimeoutError()))
    fields = read_fields(lines[0])
    assert (fields["status"], fields["outcome"], fields["code"]) == (200, "timeout", "upstream_timeout")


@pytest.mark.parametrize(
    ("error", "status", "code", "outcome"),
    [
        (InvalidRequestError("no"), 400, "invalid_request", "refused"),
        (UpstreamStatusError("no", status=429, code="slow"), 429, "slow", "upstream_error"),
    ],
)
def test_refusal(lines: list[logging.LogRecord], error: Any, status: int, code: str, outcome: str) -> None:
    """An exchange that ended before a byte of its answer has the error's status, code and outcome."""
    make_entry().refuse(error)
    fields = read_fields(lines[0])
    assert (fields["status"], fields["code"], fields["outcome"]) == (status, code, outcome)


def test_settled_once(lines: list[logging.LogRecord]) -> None:
    """A second settlement writes no line and changes nothing."""
    entry = make_entry()
    entry.settle(Settlement(Outcome.COMPLETE, bytes_out=5))
    entry.settle(Settlement(Outcome.TIMEOUT, UpstreamTimeoutError(), status=504))
    assert len(lines) == 1
    assert (entry.row.outcome, entry.row.bytes_out) == ("complete", 5)
    assert (entry.row.status, entry.row.code) == (200, None)


def test_refusal_after_settlement_changes_nothing(lines: list[logging.LogRecord]) -> None:
    """Nor does an error that comes when all is settled."""
    entry = make_entry()
    entry.settle(Settlement(Outcome.COMPLETE))
    entry.refuse(InvalidRequestError())
    assert len(lines) == 1
    assert (entry.row.status, entry.row.code) == (200, None)
