"""The terms of one exchange: what the client reads, and how long anybody waits for anybody. No IO."""

from __future__ import annotations

import msgspec

from grokflask.protocol.dialects import CHAT, Dialect

HEARTBEAT = b": keep-alive\n"
"""One comment line. A blank line behind it would make some SDKs dispatch an empty event."""


class Terms(msgspec.Struct, frozen=True):
    """How one exchange is carried. Times run from the client's request, by the monotonic clock.

    Attributes:
        wants_usage: pass the usage-only event on.
        wants_json: an error event is OpenAI's object, not the guide's text.
        heartbeat_s: of silence in a stream, then a comment goes out.
        first_event_timeout_s: from the client's request to the first event, or to the head of a whole reply.
        idle_timeout_s: between two events, or two pieces of a whole reply. Comments are no events.
        total_timeout_s: from the client's request to the end.
        drain_s: how long a call is read on for its usage after its client has left; 0 cancels it.
        secrets: texts to cut out of upstream's messages.
        max_reply_bytes: of a whole reply.
        keeps_failures: a whole reply that tells of a failure is the answer all the same.
        any_type: a whole reply need not be JSON: it is a file's content.
        dialect: how upstream's answer is read, and errors are told.
    """

    wants_usage: bool
    wants_json: bool
    heartbeat_s: float
    first_event_timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float
    drain_s: float = 0.0
    secrets: tuple[str, ...] = ()
    max_reply_bytes: int = 256 * 2**20
    keeps_failures: bool = False
    any_type: bool = False
    dialect: Dialect = CHAT
