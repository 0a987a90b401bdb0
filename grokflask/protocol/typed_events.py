"""Streams whose events name their type inside: those of Responses and of Messages. No IO.

They are relayed as chat's are, each event byte for byte. What differs is where things stand: what ends the
stream, where the usage is, and how an error is reported.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from grokflask.errors import MALFORMED
from grokflask.protocol.chat_events import DONE, EventFilter
from grokflask.protocol.sse import NamedEvent, Run
from grokflask.protocol.typed_usage import TypedReply, merge_usage
from grokflask.protocol.upstream_errors import clean_failure, parse_error

_NULL = msgspec.Raw(b"null")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class _Event(msgspec.Struct):
    """The top level of an event, of either API: what is read of it."""

    type: str = ""
    response: msgspec.Raw = _NULL
    message: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


_EVENT = msgspec.json.Decoder(_Event)
_REPLY: msgspec.json.Decoder[TypedReply | None] = msgspec.json.Decoder(TypedReply | None)


class TypedEventFilter(EventFilter):
    """What both kinds of stream share."""

    def take(self, events: list[bytes]) -> bytes:
        """As of `EventFilter`."""
        return self._take_each(events)

    def _take_run(self, run: Run, parts: list[bytes]) -> None:
        for event in run[6:-2].split(b"\n\ndata: "):
            self._take_one(event, parts)
            if self.done or self.error:
                break

    def _read(self, event: bytes) -> _Event | None:
        """The event, or None when there is nothing in it to be read; then it is only passed on."""
        try:
            read = _EVENT.decode(event)
        except MALFORMED:
            read = _Event()
        name = event.name.decode(errors="replace") if isinstance(event, NamedEvent) else ""
        read.type = read.type or name
        if "error" in (read.type, name) or bytes(read.error) not in (b"null", b"false", b'""', b"{}"):
            self.error = parse_error(event, secrets=self._secrets, in_stream=True)
            return None
        return read if read.type else None

    def _note(self, raw: msgspec.Raw) -> TypedReply | None:
        """Notes what an answer, embedded in an event, tells of itself."""
        try:
            reply = _REPLY.decode(raw)
        except MALFORMED:
            return None
        if reply is not None:
            self.usage = merge_usage(self.usage, reply.read_usage())
            self.model_served = reply.read_model() or self.model_served
        return reply


class ResponsesFilter(TypedEventFilter):
    """The stream of `/responses`: data only, ended by an event that embeds the whole answer.

    `[DONE]` ends it as well, and is sent behind an answer whether or not upstream does. It is not sent behind
    one that failed.
    """

    def _take_run(self, run: Run, parts: list[bytes]) -> None:
        # Only events that embed the answer, and errors, have these words; see event_filter on why no
        # text can.
        if run.find(b'"response"') < 0 and run.find(b'"error"') < 0:
            self.events += run.number
            parts.append(run)
            return
        super()._take_run(run, parts)

    def _take_one(self, event: bytes, parts: list[bytes]) -> None:
        if event.strip() == DONE:
            self.done = self.usage_final = True
            parts.append(b"data: [DONE]\n\n")
            return
        read = self._read(event)
        if self.error:
            return
        if read is not None and bytes(read.response) != b"null":
            reply = self._take_answer(read)
            if reply is not None and reply.has_error:
                event = clean_failure(event, self._secrets)
        self.events += 1
        parts.append(b"data: " + event + b"\n\n")
        if self.done and not self.failure:
            parts.append(b"data: [DONE]\n\n")

    def _take_answer(self, read: _Event) -> TypedReply | None:
        reply = self._note(read.response)
        if reply is None:
            return None
        if read.type == "response.created" and self.on_id and (response_id := reply.read_id()):
            self.on_id(response_id)
        if read.type in ("response.completed", "response.incomplete", "response.failed"):
            self.done = self.usage_final = True
        if read.type == "response.failed":
            self.failure = parse_error(bytes(read.response), secrets=self._secrets, in_stream=True)
        return reply


class MessagesFilter(TypedEventFilter):
    """The stream of `/messages`: each event has its type as its name, and `message_stop` is the end.

    Anthropic's SDKs see only events that have a name, so one is given to those that upstream sent without.
    `[DONE]` means nothing here and is not passed on.
    """

    def _take_one(self, event: bytes, parts: list[bytes]) -> None:
        if event.strip() == DONE:
            return
        read = self._read(event)
        if self.error:
            return
        name = read.type if read else ""
        if read is not None and name == "message_start":
            self._note(read.message)
            if self.usage is not None:  # of output it tells at most what the first piece has
                self.usage = replace(self.usage, completion_tokens=None, total_tokens=None)
        elif read is not None and name == "message_delta":
            self._note(msgspec.Raw(b'{"usage":' + bytes(read.usage) + b"}"))
        elif name == "message_stop":
            self.done = self.usage_final = True
        self.events += 1
        if _NAME.fullmatch(name):
            parts.append(b"event: " + name.encode() + b"\n")
        parts.append(b"data: " + event + b"\n\n")
