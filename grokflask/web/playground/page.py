"""The playground at `/`: the page, and a view that renders the Markdown of answers.

The page calls models through the API, like any client. GROKFLASK_PLAYGROUND=off turns off page and view.
"""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response, current_app

from grokflask.config import Settings
from grokflask.errors import MALFORMED, BodyTooLargeError, InvalidRequestError
from grokflask.protocol.routes import PREFIXES
from grokflask.web.body import read_body
from grokflask.web.callers import authenticate
from grokflask.web.current import get_current
from grokflask.web.pages import STATIC, reply_page
from grokflask.web.playground.markdown import render_markdown

MAX_BODY_BYTES = 256 * 1024
"""Size of the JSON with a text to render."""

_MODULES = ("format.js", *sorted(f"playground/{path.name}" for path in (STATIC / "playground").glob("*.js")))

blueprint = Blueprint("playground", __name__)


class _Text(msgspec.Struct):
    text: str


@blueprint.get("/")
def show_playground() -> Response:
    """The page. It is the same for all keys; its script fetches the key's models and limits."""
    settings: Settings = current_app.extensions["settings"]
    bootstrap = {
        "auth": settings.auth_mode,
        "prefix": PREFIXES[0],
        "chatModel": settings.default_chat_model,
        "imageModel": settings.default_image_model,
        "maxBodyBytes": settings.max_body_bytes,
        "visionStreams": settings.vision_stream == "stream",
        "cancels": settings.on_abort == "cancel",
    }
    return reply_page("playground.html", bootstrap=bootstrap, modules=_MODULES)


@blueprint.post("/playground/render")
def render_text() -> Response:
    """`{"html": …}` for `{"text": …}`, for callers with a key of the API. Raises GrokflaskError."""
    app, flask_request, notes = get_current()
    notes.api_key = key = authenticate(app, flask_request, flask_request.headers.get("Authorization"))
    if flask_request.content_length is None or flask_request.content_length > MAX_BODY_BYTES:
        raise BodyTooLargeError(f"Send at most {MAX_BODY_BYTES} bytes, with a Content-Length.")
    try:
        text = msgspec.json.decode(read_body(app, flask_request, notes), type=_Text).text
    except MALFORMED as error:
        raise InvalidRequestError(f"The body must be {{'text': '…'}}: {error}.") from None
    body = msgspec.json.encode({"html": render_markdown(text, caller=key.limit_id)})
    return Response(body, headers={"Cache-Control": "no-store"}, content_type="application/json")
