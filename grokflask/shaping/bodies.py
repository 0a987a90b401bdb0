"""From the client's body to the request that goes upstream. No IO.

A body is parsed at its top level only: everything below stays the bytes that the client sent, and unknown
fields pass through. The rules set default models, decide whether the answer streams, ask upstream for usage,
and drop parameters that xAI would refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from grokflask.billing.bill import FETCHED, FREE
from grokflask.config import Settings
from grokflask.errors import MALFORMED, InvalidRequestError, RouteNotFoundError
from grokflask.protocol.raw_json import RawFields, decode_fields, is_empty
from grokflask.protocol.routes import Kind, Shape, is_plain_segment
from grokflask.runtime import step_aside
from grokflask.shaping import vision
from grokflask.shaping.affinity import pin
from grokflask.shaping.dropped_params import drop_image_options, drop_refused, drop_tool_options
from grokflask.shaping.estimates import count_pictures, estimate
from grokflask.shaping.fields import FLAG, OBJECT, TEXT, drop, read_field, read_fields
from grokflask.shaping.request import FORWARDED_HEADERS, ClientRequest, UpstreamRequest
from grokflask.shaping.scan import LARGE_BYTES, NOTHING, Findings, scan
from grokflask.shaping.tools import find_use

_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
_STREAM = re.compile(rb'"stream"\s*:\s*true')


@dataclass(slots=True)
class _Shaped:
    """What a rule decides, apart from the fields themselves."""

    stream: bool = False
    wants_usage: bool = False
    fallback: str | None = None
    dropped: tuple[str, ...] = ()
    makes: Kind | None = None
    uses: tuple[Kind, str] | None = None


def shape_request(
    request: ClientRequest, settings: Settings, caller: bytes = b"", *, limited: bool = False
) -> UpstreamRequest:
    """The request to send upstream. Its conversation gets an id derived from `caller`, unless that is b"".

    `limited`: the key has a limit on tools. Raises InvalidRequestError and BodyTooLargeError, which name the
    parameter, and RouteNotFoundError for an impossible id in the path.
    """
    sent = request.headers or {}
    headers = {name: sent[name] for name in FORWARDED_HEADERS if name in sent}
    route, path = request.route, _fill_path(request)
    if not isinstance(request.body, bytes):
        headers["Content-Type"] = request.media_type
        return UpstreamRequest(route.method, path, request.body, headers, makes=route.kind)
    if route.content:
        headers["Accept"] = "*/*"
    if route.shape is None:
        cost = FETCHED if route.billing == "fetched" else FREE
        model = request.model_id or ""
        body = b"{}" if route.method == "POST" else None  # xAI refuses a POST without a body
        return UpstreamRequest(route.method, path, body, headers, model=model, estimate=cost)
    found = scan(request.body, settings, always=route.kind == "batch", limited=limited)
    fields = read_fields(request.body, check_duplicates=found is NOTHING)
    shaped = _RULES[route.shape](fields, settings, found)
    if caller and route.billing == "tokens":
        pin(headers, fields, caller, by_field=route.shape is Shape.RESPONSE)
    body = msgspec.json.encode(fields)
    step_aside(len(body))
    model = read_field(fields, "model", TEXT) or ""
    return UpstreamRequest(
        method=route.method,
        path=path,
        body=body,
        headers=headers,
        model=model,
        stream=shaped.stream,
        wants_usage=shaped.wants_usage,
        fallback=shaped.fallback,
        dropped=shaped.dropped,
        uses=shaped.uses,
        estimate=estimate(route.shape, model, body, fields, found, settings),
        makes=shaped.makes or (route.kind if route.act == "make" else None),
        tools=find_use(fields, found) if limited else "",
        found=found,
    )


def _fill_path(request: ClientRequest) -> str:
    """The path upstream, with its ids and query. Raises RouteNotFoundError for an unsafe id."""
    path = request.route.upstream_path
    for id in (request.item_id, request.model_id):
        if id is None:
            continue
        if not is_plain_segment(id):
            raise RouteNotFoundError
        path = path.format(item_id=id, model_id=id)
    return f"{path}?{request.query}" if request.query else path


def asks_for_stream(body: bytes) -> bool | None:
    """The `stream` of a body that may be wrong otherwise; None when it cannot be read.

    It decides how an error is rendered.
    """
    if len(body) > LARGE_BYTES:  # it may have been refused for what decoding it would cost
        return True if _STREAM.search(body[:4096]) or _STREAM.search(body[-4096:]) else None
    try:
        return bool(read_field(decode_fields(body), "stream", FLAG))
    except (*MALFORMED, InvalidRequestError):
        return None


def _shape_chat(fields: RawFields, settings: Settings, found: Findings) -> _Shaped:
    messages = fields.get("messages")
    if messages is None:
        raise InvalidRequestError("'messages' is missing.", param="messages")
    if bytes(memoryview(messages)[:1]) != b"[" or is_empty(messages):
        raise InvalidRequestError("'messages' must be a list with at least one message.", param="messages")
    shaped = _shape_completion(fields, settings, found)
    if "deferred" in fields and read_field(fields, "deferred", FLAG):
        if shaped.stream or shaped.fallback:
            shaped.stream, shaped.fallback = False, "deferred"  # there is no answer to stream yet
        shaped.makes = "deferred"
    if shaped.stream:
        fields["stream"] = _TRUE
        shaped.wants_usage = _ask_for_usage(fields)
    elif shaped.fallback:
        fields["stream"] = _FALSE
        fields.pop("stream_options", None)
    elif settings.drop_params:  # xAI refuses `stream_options` without `stream: true`
        shaped.dropped += drop(fields, ["stream_options"])
    return shaped


def _shape_completion(fields: RawFields, settings: Settings, found: Findings) -> _Shaped:
    """The rule for chats, messages and responses."""
    has_image = found.pictures > 0
    default = settings.default_vision_model if has_image else settings.default_chat_model
    model = _default_model(fields, default)
    stream = bool(read_field(fields, "stream", FLAG))
    dropped = drop_refused(fields, model) if settings.drop_params else ()
    if stream and has_image and settings.vision_stream == "fallback":
        fields["stream"] = _FALSE
        return _Shaped(fallback="vision", dropped=dropped)
    return _Shaped(stream=stream, dropped=dropped)


def _shape_response(fields: RawFields, settings: Settings, found: Findings) -> _Shaped:
    if is_empty(fields.get("input")):
        raise InvalidRequestError("'input' is missing.", param="input")
    shaped = _shape_completion(fields, settings, found)
    if settings.drop_params:
        shaped.dropped += drop_tool_options(fields)
    if read_field(fields, "store", FLAG) is not False:  # the default is true
        shaped.makes = "response"
    shaped.uses = _read_previous(fields)
    return shaped


def _shape_message(fields: RawFields, settings: Settings, found: Findings) -> _Shaped:
    if is_empty(fields.get("messages")):
        raise InvalidRequestError("'messages' is missing or empty.", param="messages")
    return _shape_completion(fields, settings, found)


def _shape_compaction(fields: RawFields, settings: Settings, _found: Findings) -> _Shaped:
    _default_model(fields, settings.default_chat_model)
    return _Shaped(dropped=drop(fields, ["stream"]), uses=_read_previous(fields))


def _shape_vision(fields: RawFields, settings: Settings, _found: Findings) -> _Shaped:
    model = _default_model(fields, settings.default_vision_model)
    fallback = "vision" if read_field(fields, "stream", FLAG) else None
    drop(fields, ["stream", "stream_options"])
    vision.build_messages(fields)
    dropped = drop_refused(fields, model) if settings.drop_params else ()
    return _Shaped(fallback=fallback, dropped=dropped)


def _shape_image(fields: RawFields, settings: Settings, _found: Findings) -> _Shaped:
    model = _default_model(fields, settings.default_image_model)
    if not read_field(fields, "prompt", TEXT):
        raise InvalidRequestError("'prompt' is missing.", param="prompt")
    fallback = "images" if read_field(fields, "stream", FLAG) else None
    dropped = drop(fields, ["stream", "partial_images"])  # OpenAI's; xAI's image models never stream
    if fallback:
        dropped = ()  # reported as the fallback instead
    if settings.drop_params:
        dropped += drop_image_options(fields, model)
    return _Shaped(fallback=fallback, dropped=dropped)


def _shape_edit(fields: RawFields, settings: Settings, found: Findings) -> _Shaped:
    if not count_pictures(fields):
        raise InvalidRequestError("'image' is missing: send an object with its url.", param="image")
    return _shape_image(fields, settings, found)


def _shape_video(fields: RawFields, settings: Settings, _found: Findings) -> _Shaped:
    _default_model(fields, settings.default_video_model)
    return _Shaped()


def _shape_batch(fields: RawFields, _settings: Settings, _found: Findings) -> _Shaped:
    if not read_field(fields, "name", TEXT):
        fields["name"] = msgspec.Raw(b'"batch"')  # required by xAI, unknown to OpenAI's API
    return _Shaped()


_RULES: dict[Shape, Callable[[RawFields, Settings, Findings], _Shaped]] = {
    Shape.CHAT: _shape_chat,
    Shape.VISION: _shape_vision,
    Shape.RESPONSE: _shape_response,
    Shape.COMPACTION: _shape_compaction,
    Shape.MESSAGE: _shape_message,
    Shape.IMAGE: _shape_image,
    Shape.IMAGE_EDIT: _shape_edit,
    Shape.VIDEO: _shape_video,
    Shape.BATCH: _shape_batch,
    Shape.OTHER: lambda *_: _Shaped(),
}
"""How to shape each body. A rule changes its fields."""


def _default_model(fields: RawFields, default: str) -> str:
    """The request's model; sets `default` when it has none."""
    model = read_field(fields, "model", TEXT)
    if not model:
        model = default
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return model


def _read_previous(fields: RawFields) -> tuple[Kind, str] | None:
    """The stored response that a conversation continues."""
    previous = read_field(fields, "previous_response_id", TEXT)
    return ("response", previous) if previous else None


def _ask_for_usage(fields: RawFields) -> bool:
    """Sets `stream_options.include_usage` beside other options. Returns whether the client had set it."""
    options = read_field(fields, "stream_options", OBJECT) or {}
    wants_usage = bool(read_field(options, "include_usage", FLAG))
    options["include_usage"] = _TRUE
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return wants_usage
