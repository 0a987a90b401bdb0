"""The chat API's stream: which events a client gets, and what the gateway reads in them. No IO.

`[DONE]` ends the stream, usage may come in an event of its own, and upstream may report an error inside it.
Everything else is passed on byte for byte, unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from grokflask.errors import UpstreamStatusError
from grokflask.protocol.sse import NamedEvent, Run
from grokflask.protocol.upstream_errors import parse_error
from grokflask.protocol.usage import Usage, merge_usage, read_chunk

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"


FRAME_BYTES = len(b"data: \n\n")


class EventFilter:
    """Takes events as they arrive, and returns the bytes for the client.

    Args:
        wants_usage: pass the usage-only event on.
        secrets: texts to cut out of upstream's messages.
    """

    #: Finds in the latest events that the answer is complete but for its usage.
    ending = re.compile(rb'"finish_reason"\s*:\s*"')

    #: Called with the id under which upstream keeps the answer, before the event with it is passed on.
    on_id: Callable[[str], object] | None = None

    def __init__(self, *, wants_usage: bool, secrets: tuple[str, ...] = ()) -> None:
        self.done = False  # the stream has ended; later events are dropped
        self.error: UpstreamStatusError | None = None  # from an error event, which is not passed on
        self.failure: UpstreamStatusError | None = None  # from an event that is passed on and ends the stream
        self.usage: Usage | None = None  # the latest
        self.usage_final = False  # `usage` covers the whole answer
        self.model_served: str | None = None  # as the first event names it, or the one with the usage
        self.events = 0  # passed on, without `[DONE]`
        self.other_events = 0  # those of them that have no text, as far as they were parsed
        self.other_bytes = 0  # passed on in these, and in `[DONE]`
        self._wants_usage = wants_usage
        self._secrets = secrets
        self._begun = False

    def take(self, events: list[bytes]) -> bytes:
        """The events for the client, in one piece; b"" when none of them is passed on."""
        first = events[0]
        if not self._begun:
            self._begun = True
            chunk = read_chunk(first[6 : first.find(b"\n\n")] if type(first) is Run else first)
            self.model_served = chunk.read_model() if chunk else None
        if len(events) == 1 and type(first) is Run and not _has_marks(first):
            self.events += first.number
            return first
        return self._take_each(events)

    def _take_each(self, events: list[bytes]) -> bytes:
        parts: list[bytes] = []
        for event in events:
            if type(event) is Run:
                self._take_run(event, parts)
            else:
                self._take_one(event, parts)
            if self.done or self.error:
                break
        return b"".join(parts)

    def _take_run(self, run: Run, parts: list[bytes]) -> None:
        events: list[bytes] = []
        marks = (run.find(b'"usage"'), run.find(b'"error"'))
        if (first := min((at for at in marks if at >= 0), default=-1)) >= 0:
            run, events = run.cut(first)
        self.events += run.number
        parts.append(run)
        for event in events:
            self._take_one(event, parts)
            if self.error:
                break

    def _take_one(self, event: bytes, parts: list[bytes]) -> None:
        if event.strip() == DONE:
            event = DONE
            self.done = self.usage_final = True
            self.other_bytes += len(DONE_EVENT)
        elif self._is_error(event) or not self._is_wanted(event):
            return
        else:
            self.events += 1
        parts.append(b"data: " + event + b"\n\n")

    def _is_error(self, event: bytes) -> bool:
        """Whether `event` has an error object or is named `error`. Sets `error`."""
        named = isinstance(event, NamedEvent) and event.name == b"error"
        if not named:
            chunk = read_chunk(event) if b'"error"' in event else None
            if chunk is None or not chunk.has_error:
                return False
        self.error = parse_error(event, secrets=self._secrets, in_stream=True)
        return True

    def _is_wanted(self, event: bytes) -> bool:
        """Takes the usage in `event`; False when it has nothing else and the client did not ask for it."""
        if b'"usage"' not in event:
            return True
        chunk = read_chunk(event)
        if chunk is None or not chunk.has_usage:
            return True
        self.usage = merge_usage(self.usage, chunk.read_usage())  # upstream counts up: the last is the total
        self.usage_final = not chunk.has_choices
        self.model_served = chunk.read_model() or self.model_served
        if self._wants_usage and not chunk.has_choices:
            self._note_other(event)
        return self._wants_usage or chunk.has_choices

    def _note_other(self, event: bytes) -> None:
        self.other_events += 1
        self.other_bytes += len(event) + FRAME_BYTES


def _has_marks(events: bytes) -> bool:
    """Some of `events` must be parsed, because of a field `usage` or `error`.

    In a JSON string a quote has a backslash before it, so neither mark can be part of an answer's text.
    """
    return b'"usage"' in events or b'"error"' in events
