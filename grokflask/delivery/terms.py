"""The terms of one exchange: what the client can read, and how long each wait may take. No IO."""

from __future__ import annotations

import msgspec

from grokflask.errors import FirstEventTimeoutError, IdleTimeoutError, TotalTimeoutError
from grokflask.protocol.dialects import CHAT, Dialect

HEARTBEAT = b": keep-alive\n"
"""One comment line. A blank line behind it would make some SDKs dispatch an empty event."""


class Terms(msgspec.Struct, frozen=True):
    """How one exchange is carried out.

    Attributes:
        wants_usage: pass the usage-only event on.
        wants_json: an error event is OpenAI's object, not the guide's text.
        heartbeat_s: silence in a stream after which a comment goes out.
        first_event_timeout_s: from the client's request to the first event, or to the head of a whole reply.
        idle_timeout_s: between two events, or two pieces of a whole reply. Comments do not count.
        total_timeout_s: from the client's request to the end.
        drain_s: how long a call is read on for its usage after its client has left; 0 cancels it.
        secrets: texts to cut out of upstream's messages.
        max_reply_bytes: largest whole reply.
        keeps_failures: a whole reply that reports a failure is still the answer.
        any_type: a whole reply is a file's content, and need not be JSON.
        dialect: how to read upstream's answer and write errors.
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

    def make_total_timeout_error(self) -> TotalTimeoutError:
        """For an answer that took too long as a whole."""
        return TotalTimeoutError(f"The answer took longer than {self.total_timeout_s:g} s.")

    def make_first_event_timeout_error(self) -> FirstEventTimeoutError:
        """For an upstream that has not begun to answer."""
        return FirstEventTimeoutError(f"The upstream API sent nothing for {self.first_event_timeout_s:g} s.")

    def make_idle_timeout_error(self) -> IdleTimeoutError:
        """For an upstream that fell silent inside its answer."""
        return IdleTimeoutError(f"The upstream API sent nothing more for {self.idle_timeout_s:g} s.")
