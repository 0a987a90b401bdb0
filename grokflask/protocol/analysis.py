"""The answer of `/vision/analyze`, made of upstream's chat completion. No IO."""

from __future__ import annotations

import msgspec

from grokflask.errors import MALFORMED, UpstreamProtocolError
from grokflask.protocol.raw_json import NULL


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    created: int | None = None
    usage: msgspec.Raw = NULL


_COMPLETION = msgspec.json.Decoder(_Completion)


def read_analysis(body: bytes) -> bytes:
    """The reply with model, created, content and usage of the chat completion in `body`.

    Raises UpstreamProtocolError when it is not a completion.
    """
    try:
        completion = _COMPLETION.decode(body)
        content = completion.choices[0].message.content
    except (*MALFORMED, IndexError):
        raise UpstreamProtocolError from None
    return msgspec.json.encode(
        {
            "model": completion.model,
            "created": completion.created,
            "content": content,
            "usage": completion.usage,
        }
    )
