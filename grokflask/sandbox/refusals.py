"""Refusals: answers with an error status, in the shapes xAI sends them.

The main shape is flat, `{"code": "...", "error": "..."}`. The texts are made up, except for the fragments by
which clients recognise a cause.
"""

from dataclasses import dataclass, field

import msgspec

TEAM_ID = "7d0c3f6e-52b1-4a8e-9c44-1b6f0e2a9d35"
"""Made up. Error texts contain it, as xAI's contain the caller's."""
API_KEY_ID = "c1f4a7b2-0e9d-4d63-8a5b-6e2f9013ab7c"

CODES = {
    400: "invalid-argument",
    401: "unauthenticated",
    403: "permission-denied",
    404: "not-found",
    405: "method-not-allowed",
    411: "length-required",
    413: "payload-too-large",
    415: "unsupported-media-type",
    422: "invalid-request",
    429: "resource-exhausted",
    500: "internal",
    503: "unavailable",
}
"""The `code` for a status. Those of 400, 403 and 404 were recorded, the others are guesses."""


@dataclass(eq=False)
class RefusalError(Exception):
    """An answer with an error; `deliberate` if a fault model asked for it."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    deliberate: bool = False


def flat_error(text: str, code: str) -> bytes:
    """Return the body of xAI's main error shape."""
    return msgspec.json.encode({"code": code, "error": text})


def nested_error(text: str, kind: str, code: str | None) -> bytes:
    """Return the body of OpenAI's error shape."""
    return msgspec.json.encode({"error": {"message": text, "type": kind, "param": None, "code": code}})


def refuse(status: int, text: str, code: str | None = None, **headers: str) -> RefusalError:
    """Return a refusal in the flat shape; without a `code` it has the status's own."""
    refusal = RefusalError(status, flat_error(text, code or CODES[status]))
    refusal.headers |= headers
    return refusal


def mask_key(key: str) -> str:
    """Return a key as xAI masks it in an error: two characters, three stars, two characters."""
    return f"{key[:2]}***{key[-2:]}"


def refuse_key(bearer: str | None, code: str | None = None) -> RefusalError:
    """Return the answer to a wrong key: 400, not 401."""
    text = f"Incorrect API key provided: {mask_key(bearer or 'none')}."
    return refuse(400, f"{text} Keys are made and listed at https://console.x.ai.", code)


def refuse_model(model: str) -> RefusalError:
    """Return the answer to an unknown model."""
    return refuse(404, f"The model {model} does not exist or your team {TEAM_ID} does not have access to it.")
