"""Streams of the Responses and Messages APIs, whose events have a type. No IO.

Events are passed on byte for byte, as in chat. What differs is how a stream ends, where its usage is, and how
it reports an error.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from grokflask.errors import MALFORMED
from grokflask.protocol.chat_events import DONE, DONE_EVENT, EventFilter
from grokflask.protocol.raw_json import NULL
from grokflask.protocol.sse import NamedEvent, Run
from grokflask.protocol.upstream_errors import clean_failure, parse_error
from grokflask.protocol.usage import Envelope, TypedReply, merge_usage, read_reply

_ENDS = frozenset(f"response.{status}" for status in ("completed", "incomplete", "failed", "cancelled"))
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Event(Envelope):
    """An event of either API."""

    type: str = ""
    response: msgspec.Raw = NULL
    message: msgspec.Raw = NULL


_EVENT = msgspec.json.Decoder(_Event)


class TypedEventFilter(EventFilter):
    """What both kinds of stream have in common."""

    ending = re.compile(b"(?!)")  # the usage comes in the last event

    def take(self, events: list[bytes]) -> bytes:
        """The events for the client, as `EventFilter.take`; every event is parsed."""
        return self._take_each(events)

    def _take_run(self, run: Run, parts: list[bytes]) -> None:
        for event in run.cut(0)[1]:
            self._take_one(event, parts)
            if self.done or self.error:
                break

    def _read(self, event: bytes) -> _Event | None:
        """The event with its type; None when it has none. Sets `error` when it reports one."""
        try:
            parsed = _EVENT.decode(event)
        except MALFORMED:
            parsed = _Event()
        name = event.name.decode(errors="replace") if isinstance(event, NamedEvent) else ""
        parsed.type = parsed.type or name
        if "error" in (parsed.type, name) or parsed.has_error:
            self.error = parse_error(event, secrets=self._secrets, in_stream=True)
            return None
        return parsed if parsed.type else None

    def _note(self, raw: msgspec.Raw) -> TypedReply | None:
        """Takes model and usage from the answer in an event."""
        reply = read_reply(raw)
        if reply is not None:
            self.usage = merge_usage(self.usage, reply.read_usage())
            self.model_served = reply.read_model() or self.model_served
        return reply


class ResponsesFilter(TypedEventFilter):
    """The stream of `/responses`: events without names, ended by one that has the whole answer.

    `[DONE]` ends it as well. It is sent after every answer, even if upstream does not send it, except after
    one that failed.
    """

    def _take_run(self, run: Run, parts: list[bytes]) -> None:
        # Only events with the answer, and errors, have these fields: see `chat_events._has_marks`. Those that
        # end a part repeat its text.
        data: bytes = run
        if b'"response"' not in data and b'"error"' not in data and b'.done"' not in data:
            self.events += run.number
            parts.append(run)
            return
        super()._take_run(run, parts)

    def _take_one(self, event: bytes, parts: list[bytes]) -> None:
        if event.strip() == DONE:
            self.done = self.usage_final = True
            self.other_bytes += len(DONE_EVENT)
            parts.append(DONE_EVENT)
            return
        parsed = self._read(event)
        if self.error:
            return
        if parsed is not None and memoryview(parsed.response).nbytes != 4:  # null
            reply = self._take_answer(parsed)
            if reply is not None and reply.has_error:
                event = clean_failure(event, self._secrets)
        self.events += 1
        if parsed is None or not parsed.type.endswith(".delta"):
            self._note_other(event)
        parts.append(b"data: " + event + b"\n\n")
        if self.done and not self.failure:
            self.other_bytes += len(DONE_EVENT)
            parts.append(DONE_EVENT)

    def _take_answer(self, event: _Event) -> TypedReply | None:
        reply = self._note(event.response)
        if reply is None:
            return None
        if event.type == "response.created" and self.on_id and (response_id := reply.read_id()):
            self.on_id(response_id)
        if event.type in _ENDS:
            self.done = self.usage_final = True
        if event.type == "response.failed":
            self.failure = parse_error(bytes(event.response), secrets=self._secrets, in_stream=True)
        return reply


class MessagesFilter(TypedEventFilter):
    """The stream of `/messages`: each event has its type as its name, and `message_stop` is the end.

    Anthropic's SDKs ignore events without a name, so events get one that upstream sent without. `[DONE]` is
    not part of this API and is dropped.
    """

    def _take_one(self, event: bytes, parts: list[bytes]) -> None:
        if event.strip() == DONE:
            return
        parsed = self._read(event)
        if self.error:
            return
        name = parsed.type if parsed else ""
        if parsed is not None and name == "message_start":
            self._note(parsed.message)
            if self.usage is not None:  # its output tokens are at most those of the first piece
                self.usage = replace(self.usage, completion_tokens=None, total_tokens=None)
        elif parsed is not None and name == "message_delta":
            self._note(msgspec.Raw(b'{"usage":' + bytes(parsed.usage) + b"}"))
        elif name == "message_stop":
            self.done = self.usage_final = True
        self.events += 1
        if name != "content_block_delta":
            self._note_other(event)
            self.other_bytes += len(name) + len("event: \n")
        if _NAME.fullmatch(name):
            parts.append(b"event: " + name.encode() + b"\n")
        parts.append(b"data: " + event + b"\n\n")
