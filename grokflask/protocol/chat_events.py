"""Which of upstream's events a client gets, and what is read off them on the way. No IO.

This is all that the gateway knows of the chat API's stream: the end is `[DONE]`, usage may come in an event
of its own, an error may come inside. Everything else is passed on byte for byte, unparsed.
"""

from __future__ import annotations

from collections.abc import Callable

from grokflask.errors import UpstreamStatusError
from grokflask.protocol.sse import NamedEvent, Run
from grokflask.protocol.upstream_errors import parse_error
from grokflask.protocol.usage import Usage, read_chunk

DONE = b"[DONE]"


class EventFilter:
    """Takes events as they come, gives bytes for the client.

    Args:
        wants_usage: pass the usage-only event on.
        secrets: texts to cut out of upstream's messages.

    Attributes:
        done: `[DONE]` has been seen; what comes after it is nobody's.
        error: what upstream reported inside the stream; it ends there.
        failure: that upstream said it has failed, in an event which is passed on and ends the stream.
        usage: the last that upstream told.
        usage_final: it is of the whole answer: it came in an event of its own, or the stream has ended.
        model_served: the model that answers, as the first event names it, and the one with the usage.
        events: passed on so far, `[DONE]` not counted.
        on_id: called with the id under which upstream keeps the answer, before the event with it goes out.
    """

    on_id: Callable[[str], object] | None = None

    def __init__(self, *, wants_usage: bool, secrets: tuple[str, ...] = ()) -> None:
        self.done = False
        self.error: UpstreamStatusError | None = None
        self.failure: UpstreamStatusError | None = None
        self.usage: Usage | None = None
        self.usage_final = False
        self.model_served: str | None = None
        self.events = 0
        self._wants_usage = wants_usage
        self._secrets = secrets
        self._begun = False

    def take(self, events: list[bytes]) -> bytes:
        """The events as the client gets them, in one piece. b"" when all of them are withheld."""
        first = events[0]
        if not self._begun:
            self._begun = True
            chunk = read_chunk(first[6 : first.find(b"\n\n")] if type(first) is Run else first)
            self.model_served = chunk.read_model() if chunk else None
        if len(events) == 1 and type(first) is Run and _find_mark(first) < 0:
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
        if (mark := _find_mark(run)) >= 0:
            run, events = run.cut(mark)
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
        elif self._is_error(event) or not self._is_wanted(event):
            return
        else:
            self.events += 1
        parts.append(b"data: " + event + b"\n\n")

    def _is_error(self, event: bytes) -> bool:
        """Upstream reports a failure inside the stream: an error object, or an event of that name."""
        named = isinstance(event, NamedEvent) and event.name == b"error"
        if not named:
            chunk = read_chunk(event) if b'"error"' in event else None
            if chunk is None or not chunk.has_error:
                return False
        self.error = parse_error(event, secrets=self._secrets, in_stream=True)
        return True

    def _is_wanted(self, event: bytes) -> bool:
        """Notes the usage in `event`; False when usage is all it holds and the client did not ask for it."""
        if b'"usage"' not in event:
            return True
        chunk = read_chunk(event)
        if chunk is None or not chunk.has_usage:
            return True
        self.usage = chunk.read_usage() or self.usage  # upstream counts up: the last one is the sum
        self.usage_final = not chunk.has_choices
        self.model_served = chunk.read_model() or self.model_served
        return self._wants_usage or chunk.has_choices


def _find_mark(run: bytes) -> int:
    """Where it may matter what an event says; -1 for nowhere.

    Nothing is parsed that is only passed on. Inside of a JSON string no quote stands without a backslash
    before it, so neither mark can be part of an answer's text.
    """
    usage = run.find(b'"usage"')
    error = run.find(b'"error"')
    return min(usage, error) if usage >= 0 <= error else max(usage, error)
