"""A conversation with a model through a gateway: its turns, and each answer as it arrives."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from grokflask.billing.money import format_usd
from grokflask.cli.caller import (
    Caller,
    CallError,
    explain_status,
    read_events,
    read_message,
    read_start,
)
from grokflask.errors import MALFORMED
from grokflask.protocol.routes import PREFIXES

Kind = Literal["content", "reasoning"]
Piece = tuple[Kind, str]

_FIELDS: dict[str, Kind] = {"reasoning_content": "reasoning", "content": "content"}


@dataclass
class Figures:
    """Tokens, cost and timing of an answer; times are those of `time.monotonic`."""

    asked_at: float
    first_at: float | None = None
    ended_at: float | None = None
    stopped: bool = False
    tokens: int | None = None
    total_tokens: int | None = None
    cost_ticks: int | None = None

    def describe(self) -> str:
        """One line for people; unknown figures are left out."""
        parts = ["stopped"] if self.stopped else []
        if self.total_tokens is not None:
            parts.append(f"{self.total_tokens} tokens")
        if self.cost_ticks is not None:
            parts.append(f"{format_usd(self.cost_ticks)} USD")
        if self.first_at is not None:
            parts.append(f"first after {(self.first_at - self.asked_at) * 1000:.0f} ms")
            took_s = (self.ended_at or time.monotonic()) - self.first_at
            if self.tokens and took_s > 0:
                parts.append(f"{self.tokens / took_s:.0f} tokens/s")
        return ", ".join(parts)


class Conversation:
    """The turns with a model, which may change between them."""

    def __init__(self, caller: Caller, model: str | None, system: str | None) -> None:
        self.model = model  # None is the gateway's default
        #: Those of the last answer.
        self.figures = Figures(0.0)
        self._caller = caller
        self._system = system
        self.turns: list[dict[str, str]] = []

    def ask(self, prompt: str) -> Generator[Piece, None, None]:
        """The pieces of the answer as they arrive. Raises CallError, also for an incomplete answer.

        Closing the generator closes the connection, which ends the answer upstream. The part that has arrived
        stays a turn; if there is none, the prompt is forgotten too.
        """
        self.turns.append({"role": "user", "content": _repair_surrogates(prompt)})
        self.figures = Figures(time.monotonic())
        answer: list[str] = []
        try:
            for kind, text in self._stream():
                if self.figures.first_at is None:
                    self.figures.first_at = time.monotonic()
                if kind == "content":
                    answer.append(text)
                yield kind, text
        finally:
            self.figures.ended_at = time.monotonic()
            if answer:
                self.turns.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.turns.pop()

    def _stream(self) -> Generator[Piece, None, None]:
        system = [{"role": "system", "content": _repair_surrogates(self._system)}] if self._system else []
        body: dict[str, Any] = {
            "messages": [*system, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.model:
            body["model"] = _repair_surrogates(self.model)
        headers = {"Accept": "text/event-stream, application/json"}
        with self._caller.call(
            "POST", f"{PREFIXES[0]}/chat/completions", body=body, headers=headers
        ) as reply:
            if reply.status_code != 200:
                raise CallError(explain_status(reply))
            if not reply.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise CallError(
                    f"{self._caller.url} does not answer with a stream: is it the address of a gateway?"
                )
            yield from self._read(read_events(reply))

    def _read(self, events: Iterator[bytes]) -> Iterator[Piece]:
        for data in events:
            if data == b"[DONE]":
                return
            try:
                chunk = json.loads(data)  # unlike msgspec, it accepts half of a surrogate pair
            except (ValueError, RecursionError):
                raise CallError("The gateway sent an event that is not JSON.") from None
            if not isinstance(chunk, dict):
                continue
            if "error" in chunk:
                raise CallError(read_message(data) or "The gateway reports an error without a message.")
            self._note_usage(chunk.get("usage"))
            yield from _find_pieces(chunk.get("choices"))
        raise CallError(
            "The answer was cut off: no [DONE] arrived. A proxy in front of the gateway may have closed the "
            "connection; `flask --app wsgi doctor --url` checks it."
        )

    def _note_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.figures.total_tokens = _read_count(usage, "total_tokens")
            self.figures.tokens = _read_count(usage, "completion_tokens")
            self.figures.cost_ticks = _read_count(usage, "cost_in_usd_ticks")

    def list_models(self) -> list[str]:
        """The names of the models that the key may use. Raises CallError."""
        with self._caller.call("GET", f"{PREFIXES[0]}/models", silence_s=60.0) as reply:
            if reply.status_code != 200:
                raise CallError(explain_status(reply))
            body = read_start(reply)
        try:
            return [str(each["id"]) for each in msgspec.json.decode(body)["data"]]
        except (*MALFORMED, LookupError, TypeError):
            raise CallError(read_message(body) or "The gateway's list of models is not readable.") from None


def _find_pieces(choices: object) -> Iterator[Piece]:
    """The texts in a chunk's choices."""
    for choice in choices if isinstance(choices, list) else ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            continue
        for field, kind in _FIELDS.items():
            text = delta.get(field)
            if isinstance(text, str) and text:
                yield kind, _repair_surrogates(text)


def _repair_surrogates(text: str) -> str:
    """`text` without unpaired surrogates, which cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _read_count(usage: dict[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if isinstance(count, int) and count >= 0 else None
