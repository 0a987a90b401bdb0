"""The routes over what is kept: files and batches, and fetching deferred answers and videos."""

import re
import uuid
from collections.abc import Callable, Mapping
from email.message import Message
from email.parser import BytesParser
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from grokflask.sandbox.exchanges import send_json, send_whole
from grokflask.sandbox.journal import Exchange
from grokflask.sandbox.kept import BATCH_DISCOUNT, MAX_FILE_BYTES, Batch, File, Shelf, show_file
from grokflask.sandbox.plans import Call, answer_chat
from grokflask.sandbox.refusals import RefusalError, refuse

if TYPE_CHECKING:
    from grokflask.sandbox.handler import Handler

PAGE = 100
MAX_RESULTS = 1000


class BatchRequest(msgspec.Struct):
    """The body that makes a batch."""

    name: str
    input_file_id: str | None = None


class ChatItem(msgspec.Struct):
    """One request of a batch, as it is added."""

    chat_get_completion: msgspec.Raw


class AddedItem(msgspec.Struct):
    """One request of a batch and its name."""

    batch_request_id: str
    batch_request: ChatItem


class AddRequest(msgspec.Struct):
    """The body that adds requests to a batch."""

    batch_requests: list[AddedItem]


class Line(msgspec.Struct):
    """One line of a batch's input file."""

    custom_id: str
    body: msgspec.Raw
    url: str | None = None
    method: str | None = None


def _send(handler: "Handler", value: Any, status: int = 200) -> None:
    send_json(handler.wire, msgspec.json.encode(value), status)


def _id_of(path: str, place: int = 3) -> str:
    return path.split("/")[place]


def get_deferred(handler: "Handler", path: str, _body: bytes) -> None:
    """Give a deferred answer out, once; 202 without a body while it is pending."""
    id = _id_of(path, 4)
    reply = handler.sandbox.kept.deferred.find(id).poll()
    if reply is None:
        send_whole(handler.wire, 202, {}, b"")
        return
    handler.sandbox.kept.deferred.remove(id)
    _send(handler, reply)


def get_video(handler: "Handler", path: str, _body: bytes) -> None:
    """Show how far a video is; 202 while it is pending."""
    reply = handler.sandbox.kept.videos.find(_id_of(path)).poll()
    _send(handler, reply or {"status": "pending"}, 200 if reply else 202)


def post_file(handler: "Handler", _path: str, body: bytes) -> None:
    """Take a file in."""
    parts = _read_form(handler.headers.get("Content-Type", ""), body)
    name, content = parts.pop("file", (None, b""))
    if name is None:
        raise refuse(422, "The form has no file.")
    if len(content) > MAX_FILE_BYTES:
        raise refuse(413, f"The file is larger than {MAX_FILE_BYTES} bytes.")
    texts = {key: value.decode() for key, (_, value) in parts.items()}
    end = texts.get("expires_after[seconds]", texts.get("expires_after"))
    file = File(name, content, texts.get("purpose"), int(end) if end and end.isdecimal() else None)
    id = f"file_{uuid.uuid4()}"
    handler.sandbox.kept.files.add(id, file)
    _send(handler, show_file(id, file))


def list_files(handler: "Handler", _path: str, _body: bytes) -> None:
    """List files, the newest first."""
    page, token = _page(handler, handler.sandbox.kept.files)
    shown = [show_file(id, file) for id, file in page]
    _send(handler, {"data": shown, "pagination_token": token})


def get_file(handler: "Handler", path: str, _body: bytes) -> None:
    """Show a file."""
    id = _id_of(path)
    _send(handler, show_file(id, handler.sandbox.kept.files.find(id)))


def delete_file(handler: "Handler", path: str, _body: bytes) -> None:
    """Forget a file."""
    handler.sandbox.kept.files.remove(_id_of(path))
    _send(handler, {"id": _id_of(path), "object": "file", "deleted": True})


def get_content(handler: "Handler", path: str, _body: bytes) -> None:
    """Give a file's bytes out."""
    file = handler.sandbox.kept.files.find(_id_of(path))
    send_whole(handler.wire, 200, {"Content-Type": "application/octet-stream"}, file.content)


def post_batch(handler: "Handler", path: str, body: bytes) -> None:
    """Make a batch, of a file's lines if one is named."""
    asked = _decode(body, BatchRequest)
    batch = Batch(asked.name, polls_left=handler.sandbox.kept.pending_polls)
    if asked.input_file_id:
        content = handler.sandbox.kept.files.find(asked.input_file_id).content
        for line in filter(None, content.splitlines()):
            item = _decode(line, Line)
            _answer(handler, batch, item.custom_id, bytes(item.body))
    id = f"batch_{uuid.uuid4()}"
    handler.sandbox.kept.batches.add(id, batch)
    _note(handler, path, batch.cost_ticks)
    _send(handler, batch.show(id))


def list_batches(handler: "Handler", _path: str, _body: bytes) -> None:
    """List batches, the newest first."""
    page, token = _page(handler, handler.sandbox.kept.batches)
    _send(handler, {"batches": [batch.show(id) for id, batch in page], "pagination_token": token})


def get_batch(handler: "Handler", path: str, _body: bytes) -> None:
    """Show a batch."""
    id = _id_of(path)
    _send(handler, handler.sandbox.kept.batches.find(id).show(id))


def cancel_batch(handler: "Handler", path: str, _body: bytes) -> None:
    """Cancel a batch."""
    id = _id_of(path).removesuffix(":cancel")
    batch = handler.sandbox.kept.batches.find(id)
    batch.cancelled = True
    _send(handler, batch.show(id))


def add_requests(handler: "Handler", path: str, body: bytes) -> None:
    """Add requests to a batch."""
    batch = handler.sandbox.kept.batches.find(_id_of(path))
    before = batch.cost_ticks
    for item in _decode(body, AddRequest).batch_requests:
        _answer(handler, batch, item.batch_request_id, bytes(item.batch_request.chat_get_completion))
    _note(handler, path, batch.cost_ticks - before)
    _send(handler, {})


def list_requests(handler: "Handler", path: str, _body: bytes) -> None:
    """List a batch's requests."""
    batch = handler.sandbox.kept.batches.find(_id_of(path))
    names = [{"batch_request_id": each["batch_request_id"], "state": "succeeded"} for each in batch.results]
    _send(handler, {"batch_request_metadata": names, "pagination_token": None})


def list_results(handler: "Handler", path: str, _body: bytes) -> None:
    """List a batch's results."""
    batch = handler.sandbox.kept.batches.find(_id_of(path))
    limit, start = _read_page(handler, MAX_RESULTS)
    page = batch.results[start : start + limit]
    more = start + limit < len(batch.results)
    _send(handler, {"results": page, "pagination_token": str(start + limit) if more else None})


def _answer(handler: "Handler", batch: Batch, name: str, body: bytes) -> None:
    try:
        reply = answer_chat(Call("", body, None, handler.sandbox.origin), handler.sandbox.clock)
    except RefusalError as refusal:
        failed = {"batch_request_id": name, "error_message": refusal.body.decode()}
        batch.results.append(failed)
        return
    ticks = reply["usage"]["cost_in_usd_ticks"] // BATCH_DISCOUNT
    reply["usage"]["cost_in_usd_ticks"] = ticks
    batch.cost_ticks += ticks
    result = {"response": {"chat_get_completion": reply}}
    batch.results.append({"batch_request_id": name, "batch_result": result})


def _note(handler: "Handler", path: str, cost_ticks: int) -> None:
    noted = Exchange("", path, "complete", 200, cost_ticks=cost_ticks, request_id=handler.request_id)
    handler.sandbox.journal.add(noted)


def _read_page(handler: "Handler", most: int) -> tuple[int, int]:
    query = parse_qs(handler.path.partition("?")[2])
    limit, token = query.get("limit", [str(most)])[0], query.get("pagination_token", ["0"])[0]
    if not limit.isdecimal() or not 1 <= int(limit) <= most or not token.isdecimal():
        raise refuse(400, f"limit must be between 1 and {most}, pagination_token one that was given out.")
    return int(limit), int(token)


def _page(handler: "Handler", shelf: Shelf[Any]) -> tuple[list[tuple[str, Any]], str | None]:
    limit, start = _read_page(handler, PAGE)
    items = shelf.list()
    return items[start : start + limit], str(start + limit) if start + limit < len(items) else None


def _read_form(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    """The parts of a multipart body by name: their file's name and their bytes."""
    if not content_type.startswith("multipart/form-data"):
        raise refuse(415, "The Content-Type must be multipart/form-data.")
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts: list[Message] = message.get_payload() if message.is_multipart() else []  # type: ignore[assignment]
    found = {}
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        found[str(name)] = (part.get_filename(), content if isinstance(content, bytes) else b"")
    return found


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise refuse(422, f"Failed to deserialize the JSON body into the target type: {error}") from None


Action = Callable[["Handler", str, bytes], None]

KEPT_ROUTES: list[tuple[re.Pattern[str], Mapping[str, Action]]] = [
    (re.compile(r"/v1/chat/deferred-completion/[^/]+"), {"GET": get_deferred}),
    (re.compile(r"/v1/videos/(?!generations|edits|extensions)[^/]+"), {"GET": get_video}),
    (re.compile(r"/v1/files"), {"POST": post_file, "GET": list_files}),
    (re.compile(r"/v1/files/[^/]+"), {"GET": get_file, "DELETE": delete_file}),
    (re.compile(r"/v1/files/[^/]+/content"), {"GET": get_content}),
    (re.compile(r"/v1/batches"), {"POST": post_batch, "GET": list_batches}),
    (re.compile(r"/v1/batches/[^/]+:cancel"), {"POST": cancel_batch}),
    (re.compile(r"/v1/batches/[^/]+"), {"GET": get_batch}),
    (re.compile(r"/v1/batches/[^/]+/requests"), {"POST": add_requests, "GET": list_requests}),
    (re.compile(r"/v1/batches/[^/]+/results"), {"GET": list_results}),
]
