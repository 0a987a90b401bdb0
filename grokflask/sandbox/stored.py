"""Stored responses: what `GET /v1/responses/{id}` shows, and what `previous_response_id` stands for."""

import threading
from typing import Any, NamedTuple

from grokflask.sandbox.chat_request import Message
from grokflask.sandbox.refusals import refuse

MAX_RESPONSES = 1_000


class StoredResponse(NamedTuple):
    """One response, and the conversation up to its end."""

    response: dict[str, Any]
    messages: list[Message]


class StoredResponses:
    """The last thousand. Safe from any thread."""

    def __init__(self) -> None:
        self._responses: dict[str, StoredResponse] = {}
        self._lock = threading.Lock()

    def add(self, response: dict[str, Any], messages: list[Message]) -> None:
        """Keep one."""
        with self._lock:
            self._responses[response["id"]] = StoredResponse(response, messages)
            while len(self._responses) > MAX_RESPONSES:
                del self._responses[next(iter(self._responses))]

    def find(self, response_id: str) -> StoredResponse:
        """Return one; refuses with 404 what is not there."""
        found = self._responses.get(response_id)
        if found is None:
            raise refuse(404, f"No response was found with the id {response_id}.")
        return found

    def remove(self, response_id: str) -> None:
        """Forget one; refuses with 404 what is not there."""
        with self._lock:
            if self._responses.pop(response_id, None) is None:
                raise refuse(404, f"No response was found with the id {response_id}.")
