"""A request and a reply as the routes see them, and the state that all requests to one sandbox share."""

from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any, NamedTuple, TypeVar

import msgspec

from grokflask.sandbox.kept import Journal, Kept
from grokflask.sandbox.refusals import refuse

T = TypeVar("T")
Clock = Callable[[], float]
"""Returns seconds since 1970."""
Action = Callable[..., Any]
"""Takes the Request and the ids of its path; returns a Reply, or the JSON value of one with status 200."""


class State:
    """The options, which may be changed at any time, and everything that is kept."""

    def __init__(self, events_per_s: float, key: str | None, clock: Clock) -> None:
        self.events_per_s = events_per_s
        self.key = key
        self.clock = clock
        self.short_models = False
        self.forget()

    def forget(self) -> None:
        """Start again with an empty journal and nothing kept."""
        self.journal = Journal()
        self.kept = Kept()


class Request(NamedTuple):
    """A request. `origin` is the scheme and host it was sent to, `id` the answer's `x-request-id`."""

    path: str
    query: str
    headers: Message
    body: bytes
    origin: str
    id: str
    state: State

    @property
    def bearer(self) -> str | None:
        """The bearer key that was sent."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None


class Reply(NamedTuple):
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {"Content-Type": "application/json"}


class ModelRequest(msgspec.Struct, kw_only=True):
    """The fields that a model's routes have in common."""

    model: str
    user: str | None = None


def decode(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as `kind`; raises RefusalError: 400 if it is not JSON, 422 if it does not fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise refuse(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse(400, f"Failed to parse the request body as JSON: {error}") from None
