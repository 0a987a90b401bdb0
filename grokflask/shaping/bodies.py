"""From the client's body to the request that goes upstream. No IO.

A body is parsed at its top level only; everything below stays the bytes that the client sent. Fields that
nobody here knows pass through. What is decided: default models, whether the answer streams, what is asked
of upstream besides (usage), and which parameters are dropped because xAI would refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from grokflask.billing.bill import FETCHED, FREE, Estimate, estimate_chat, estimate_images, estimate_video
from grokflask.config import Settings
from grokflask.errors import MALFORMED, InvalidRequestError, RouteNotFoundError
from grokflask.protocol.dialects import RESPONSES
from grokflask.protocol.routes import Kind, Route, is_plain_segment
from grokflask.shaping import vision
from grokflask.shaping.affinity import pin
from grokflask.shaping.dropped_params import Fields, drop_refused, drop_tool_options, is_empty, is_reasoning
from grokflask.shaping.request import FORWARDED_HEADERS, ClientRequest, UpstreamRequest
from grokflask.shaping.tools import FIELDS as TOOL_FIELDS
from grokflask.shaping.tools import find_use

MAX_OUTPUT_TOKENS = 2_000_000
MAX_ANSWERS = 128
"""No estimate is for more: what asks for it is refused upstream anyway."""

_IGNORED = (
    *("size", "style", "seed", "mask", "background", "moderation", "output_format", "output_compression"),
    "input_fidelity",
)
_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
# Made once: to find out what a type means takes longer than to read it.
_DECODER = msgspec.json.Decoder(Fields)
_OPTIONS: msgspec.json.Decoder[Fields | None] = msgspec.json.Decoder(Fields | None)
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)
_COUNT: msgspec.json.Decoder[int | None] = msgspec.json.Decoder(int | None)
_PICTURES: msgspec.json.Decoder[list[msgspec.Raw] | None] = msgspec.json.Decoder(list[msgspec.Raw] | None)
_FLAG: msgspec.json.Decoder[bool | None] = msgspec.json.Decoder(bool | None)


class _Shaped(NamedTuple):
    """What a body's rule decides beyond the fields themselves."""

    stream: bool = False
    wants_usage: bool = False
    fallback: str | None = None
    dropped: tuple[str, ...] = ()
    makes: Kind | None = None
    uses: tuple[Kind, str] | None = None


def shape_request(request: ClientRequest, settings: Settings, caller: bytes = b"") -> UpstreamRequest:
    """The request to send upstream. Its conversation gets an id that is this `caller`'s, b"" for none.

    Raises InvalidRequestError, naming the parameter, and RouteNotFoundError for an id in the path that
    could not be one.
    """
    given = request.headers or {}
    headers = {name: given[name] for name in FORWARDED_HEADERS if name in given}
    route, path = request.route, _fill_path(request)
    if not isinstance(request.body, bytes):
        headers["Content-Type"] = request.media_type
        return UpstreamRequest(route.method, path, request.body, headers, makes=route.kind)
    if route.content:
        headers["Accept"] = "*/*"
    rule = _RULES.get(route.name) if route.method == "POST" else None
    if rule is None:
        estimate = FETCHED if route.billing == "fetched" else FREE
        model = request.model_id or ""
        body = b"{}" if route.method == "POST" else None  # xAI refuses a POST without one
        return UpstreamRequest(route.method, path, body, headers, model=model, estimate=estimate)
    fields = read_fields(request.body)
    shaped = rule(fields, settings)
    if caller and route.billing == "tokens":
        pin(headers, fields, caller, by_field=route.name == "responses")
    body = msgspec.json.encode(fields)
    model = _read_text(fields, "model") or ""
    return UpstreamRequest(
        method=request.route.method,
        path=path,
        body=body,
        headers=headers,
        model=model,
        stream=shaped.stream,
        wants_usage=shaped.wants_usage,
        fallback=shaped.fallback,
        dropped=shaped.dropped,
        uses=shaped.uses,
        estimate=_estimate(request.route, model, body, fields, settings),
        makes=shaped.makes or (route.kind if route.act == "make" else None),
        tools="" if TOOL_FIELDS.isdisjoint(fields) else find_use(fields),
    )


def _fill_path(request: ClientRequest) -> str:
    """Where upstream has it. Raises RouteNotFoundError for what could not stand in its path."""
    path = request.route.upstream_path
    for id in (request.item_id, request.model_id):
        if id is None:
            continue
        if not is_plain_segment(id):
            raise RouteNotFoundError
        path = path.format(item_id=id, model_id=id)
    return f"{path}?{request.query}" if request.query else path


def asks_for_stream(body: bytes) -> bool | None:
    """What `body` says of `stream`, however little else of it makes sense; None where that cannot be told.

    For the shape of an error.
    """
    try:
        return _read_flag(_DECODER.decode(body), "stream")
    except (*MALFORMED, InvalidRequestError):
        return None


def read_fields(body: bytes) -> Fields:
    """The top level of a JSON object. Raises InvalidRequestError."""
    if not body.strip():
        raise InvalidRequestError("The request has no body; it takes a JSON object.")
    try:
        if not body.isascii():
            body.decode()  # below the top level nobody here would notice
        return _DECODER.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequestError("The body is JSON, but not an object.") from None
    except MALFORMED as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None


def _shape_chat(fields: Fields, settings: Settings) -> _Shaped:
    messages = fields.get("messages")
    if messages is None:
        raise InvalidRequestError("'messages' is missing.", param="messages")
    if bytes(memoryview(messages)[:1]) != b"[" or is_empty(messages):
        raise InvalidRequestError("'messages' must be a list with at least one message.", param="messages")
    has_image = vision.has_image_part(messages)
    model = _default_model(
        fields, settings.default_vision_model if has_image else settings.default_chat_model
    )
    stream = _read_flag(fields, "stream")
    fallback = "vision" if stream and has_image and settings.vision_stream == "fallback" else None
    deferred = "deferred" in fields and _read_flag(fields, "deferred")
    if stream and deferred:
        fallback = "deferred"  # there is nothing yet to stream
    dropped = drop_refused(fields, model) if settings.drop_params else ()
    if not stream or fallback:
        # `stream_options` beside `stream: false` is refused upstream.
        if fallback:
            fields["stream"] = _FALSE
            fields.pop("stream_options", None)
        elif settings.drop_params and fields.pop("stream_options", None) is not None:
            dropped += ("stream_options",)
        return _Shaped(fallback=fallback, dropped=dropped, makes="deferred" if deferred else None)
    fields["stream"] = _TRUE
    return _Shaped(stream=True, wants_usage=_ask_for_usage(fields), dropped=dropped)


def _shape_vision(fields: Fields, settings: Settings) -> _Shaped:
    model = _default_model(fields, settings.default_vision_model)
    fallback = "vision" if _read_flag(fields, "stream") else None
    fields.pop("stream", None)
    fields.pop("stream_options", None)
    fields["messages"] = vision.build_messages(
        image=fields.pop("image", None),
        prompt=fields.pop("prompt", None),
        detail=fields.pop("detail", None),
        before=fields.get("messages"),
    )
    dropped = drop_refused(fields, model) if settings.drop_params else ()
    return _Shaped(fallback=fallback, dropped=dropped)


def _shape_images(fields: Fields, settings: Settings) -> _Shaped:
    model = _default_model(fields, settings.default_image_model)
    if not _read_text(fields, "prompt"):
        raise InvalidRequestError("'prompt' is missing.", param="prompt")
    # Image models never stream; these two are how OpenAI's API asks for it.
    fallback = "images" if _read_flag(fields, "stream") else None
    asked = tuple(name for name in ("stream", "partial_images") if fields.pop(name, None) is not None)
    dropped = _drop(fields, _list_ignored(fields, model)) if settings.drop_params else ()
    return _Shaped(fallback=fallback, dropped=(() if fallback else asked) + dropped)


def _shape_edits(fields: Fields, settings: Settings) -> _Shaped:
    if not count_pictures(fields):
        raise InvalidRequestError("'image' is missing: an object with its url.", param="image")
    return _shape_images(fields, settings)


def count_pictures(fields: Fields) -> int:
    """How many pictures an edit works on. What else is wrong with them is for upstream to say."""
    if not is_empty(fields.get("image")):
        return 1
    try:
        return len(_PICTURES.decode(fields.get("images", b"null")) or ())
    except MALFORMED:
        return 1


def _list_ignored(fields: Fields, model: str) -> list[str]:
    """What OpenAI's image models take, and xAI's ignore, or at times refuse."""
    names = list(_IGNORED)
    quality = bytes(fields.get("quality", b"null"))
    if quality not in (b'"low"', b'"medium"') or not model.startswith("grok-imagine-image-2"):
        names.append("quality")
    return names


def _shape_video(fields: Fields, settings: Settings) -> _Shaped:
    _default_model(fields, settings.default_video_model)
    return _Shaped()


def _shape_batch(fields: Fields, _settings: Settings) -> _Shaped:
    if not _read_text(fields, "name"):
        fields["name"] = msgspec.Raw(b'"batch"')  # OpenAI's API has none, and xAI's wants one
    return _Shaped()


def _shape_nothing(_fields: Fields, _settings: Settings) -> _Shaped:
    return _Shaped()


def _shape_responses(fields: Fields, settings: Settings) -> _Shaped:
    if is_empty(fields.get("input")):
        raise InvalidRequestError("'input' is missing.", param="input")
    has_image = vision.has_image_part(fields["input"])
    shaped = _shape_typed(fields, settings, has_image=has_image)
    dropped = drop_tool_options(fields) if settings.drop_params else ()
    stores = bytes(fields.get("store", b"null")) == b"null" or _read_flag(fields, "store")
    return shaped._replace(
        dropped=shaped.dropped + dropped, uses=_read_previous(fields), makes="response" if stores else None
    )


def _shape_compaction(fields: Fields, settings: Settings) -> _Shaped:
    _default_model(fields, settings.default_chat_model)
    dropped = ("stream",) if fields.pop("stream", None) is not None else ()
    return _Shaped(dropped=dropped, uses=_read_previous(fields))


def _shape_messages(fields: Fields, settings: Settings) -> _Shaped:
    messages = fields.get("messages")
    if messages is None or is_empty(messages):
        raise InvalidRequestError("'messages' is missing, or has no message.", param="messages")
    return _shape_typed(fields, settings, has_image=vision.has_image_part(messages))


def _shape_typed(fields: Fields, settings: Settings, *, has_image: bool) -> _Shaped:
    """What Responses and Messages have in common; upstream tells usage there without being asked."""
    model = _default_model(
        fields, settings.default_vision_model if has_image else settings.default_chat_model
    )
    stream = _read_flag(fields, "stream")
    dropped = drop_refused(fields, model) if settings.drop_params else ()
    if stream and has_image and settings.vision_stream == "fallback":
        fields["stream"] = _FALSE
        return _Shaped(fallback="vision", dropped=dropped)
    return _Shaped(stream=stream, dropped=dropped)


def _read_previous(fields: Fields) -> tuple[Kind, str] | None:
    """The stored response that a conversation goes on from."""
    previous = _read_text(fields, "previous_response_id")
    return ("response", previous) if previous else None


_RULES: dict[str, Callable[[Fields, Settings], _Shaped]] = {
    "chat": _shape_chat,
    "vision": _shape_vision,
    "images": _shape_images,
    "images-edits": _shape_edits,
    "tokenize": _shape_nothing,
    "videos": _shape_video,
    "batches": _shape_batch,
    "batch-requests": _shape_nothing,
    "responses": _shape_responses,
    "responses-compact": _shape_compaction,
    "messages": _shape_messages,
}


def _default_model(fields: Fields, default: str) -> str:
    model = _read_text(fields, "model")
    if not model:
        model = default
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return model


def _read_text(fields: Fields, name: str) -> str | None:
    try:
        return _TEXT.decode(fields.get(name, b"null"))
    except MALFORMED:
        raise InvalidRequestError(f"{name!r} must be a string.", param=name) from None


def _read_count(fields: Fields, *names: str) -> int | None:
    """The first of these that is a number, 0 or more. What is wrong with others is for upstream to say."""
    for name in names:
        try:
            count = _COUNT.decode(fields.get(name, b"null"))
        except MALFORMED:
            continue
        if count is not None and count >= 0:
            return count
    return None


def _estimate(route: Route, model: str, body: bytes, fields: Fields, settings: Settings) -> Estimate:
    """What the request may cost. xAI's caps are on what is seen of an answer; those of Responses on all."""
    answers = min(_read_count(fields, "n") or 1, MAX_ANSWERS)
    if route.billing == "free":
        return FREE
    if route.name == "videos":
        return estimate_video(model, _read_count(fields, "duration"))
    if route.billing == "images":
        return estimate_images(
            model, answers + (count_pictures(fields) if route.name == "images-edits" else 0)
        )
    output_tokens = settings.output_estimate_tokens
    if route.dialect is RESPONSES:
        cap = _read_count(fields, "max_output_tokens")
        output_tokens = output_tokens if cap is None else cap
    elif (cap := _read_count(fields, "max_completion_tokens", "max_tokens")) is not None:
        output_tokens = cap + (output_tokens if is_reasoning(model) else 0)
    return estimate_chat(model, body, min(output_tokens, MAX_OUTPUT_TOKENS) * answers)


def _read_flag(fields: Fields, name: str) -> bool:
    try:
        return bool(_FLAG.decode(fields.get(name, b"null")))
    except MALFORMED:
        raise InvalidRequestError(f"{name!r} must be true or false.", param=name) from None


def _ask_for_usage(fields: Fields) -> bool:
    """Sets `stream_options.include_usage`, keeps its other fields; tells whether the client had set it."""
    try:
        options = _OPTIONS.decode(fields.get("stream_options", b"null")) or {}
    except MALFORMED:
        raise InvalidRequestError("'stream_options' must be an object.", param="stream_options") from None
    asked = _read_flag(options, "include_usage")
    options["include_usage"] = _TRUE
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return asked


def _drop(fields: Fields, names: Sequence[str]) -> tuple[str, ...]:
    dropped = tuple(name for name in names if name in fields)
    for name in dropped:
        del fields[name]
    return dropped
