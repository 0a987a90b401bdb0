"""Which of upstream's events a client gets, and what is read off them on the way. No IO.

This is all that the gateway knows of the chat API's stream: the end is `[DONE]`, usage may come in an event
of its own, an error may come inside. Everything else is passed on byte for byte, unparsed.
"""

from __future__ import annotations

from grokflask.errors import UpstreamStatusError
from grokflask.sse import NamedEvent
from grokflask.upstream_errors import parse_error
from grokflask.usage import Usage, read_chunk

DONE = b"[DONE]"


class EventFilter:
    """Takes events as they come, gives bytes for the client.

    Args:
        wants_usage: pass the usage-only event on.
        secrets: texts to cut out of upstream's messages.

    Attributes:
        done: `[DONE]` has been seen; what comes after it is nobody's.
        error: what upstream reported inside the stream; it ends there.
        usage: the last that upstream told.
        usage_final: it is of the whole answer: it came in an event of its own, or the stream has ended.
        model_served: the model that answered, as the event with the usage names it.
        events: passed on so far, `[DONE]` not counted.
    """

    def __init__(self, *, wants_usage: bool, secrets: tuple[str, ...] = ()) -> None:
        self.done = False
        self.error: UpstreamStatusError | None = None
        self.usage: Usage | None = None
        self.usage_final = False
        self.model_served: str | None = None
        self.events = 0
        self._wants_usage = wants_usage
        self._secrets = secrets

    def take(self, events: list[bytes]) -> bytes:
        """The events as the client gets them, in one piece. b"" when all of them are withheld."""
        out = b"data: " + b"\n\ndata: ".join(events) + b"\n\n"
        # Nothing is parsed that is only passed on: three searches in the bytes tell whether to look closer.
        if b'"usage"' not in out and b'"error"' not in out and DONE not in out and not _any_named(events):
            self.events += len(events)
            return out
        return b"".join(b"data: " + event + b"\n\n" for event in self._choose(events))

    def _choose(self, events: list[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        for event in events:
            if event.strip() == DONE:
                self.done = self.usage_final = True
                kept.append(DONE)
                break
            if self._is_error(event):
                break
            if self._is_wanted(event):
                kept.append(event)
                self.events += 1
        return kept

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


def _any_named(events: list[bytes]) -> bool:
    return any(type(event) is NamedEvent for event in events)
