"""The routes of what is kept: responses, deferred answers, videos, files and batches."""

import uuid
from collections.abc import Iterable, Sequence
from email.message import Message
from email.parser import BytesParser
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from grokflask.sandbox.kept import MAX_FILE_BYTES, Batch, Exchange, File
from grokflask.sandbox.plans import answer_chat
from grokflask.sandbox.refusals import RefusalError, refuse
from grokflask.sandbox.request import Action, Reply, Request, decode

BATCH_DISCOUNT = 2
"""A chat in a batch costs half its price."""
FILE_HEADERS = {"Content-Type": "application/octet-stream"}


class _BatchRequest(msgspec.Struct):
    name: str
    input_file_id: str | None = None


class _AddedItem(msgspec.Struct):
    batch_request_id: str
    batch_request: dict[str, msgspec.Raw]


class _AddRequest(msgspec.Struct):
    batch_requests: list[_AddedItem]


class _Line(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


def _list(shelf: str, key: str, request: Request) -> dict[str, Any]:
    page, token = _cut_page(request, getattr(request.state.kept, shelf).list(), 100)
    return {key: [item.show(id) for id, item in page], "pagination_token": token}


def _get(shelf: str, request: Request, id: str) -> dict[str, Any]:
    shown: dict[str, Any] = getattr(request.state.kept, shelf).find(id).show(id)
    return shown


def _delete(shelf: str, request: Request, id: str) -> dict[str, Any]:
    kept = getattr(request.state.kept, shelf)
    kept.remove(id)
    return {"id": id, "object": kept.kind, "deleted": True}


def _get_deferred(request: Request, id: str) -> Any:
    """Return a deferred answer once; 202 without a body while it is pending."""
    shelf = request.state.kept.deferred
    reply = next(shelf.find(id))
    if reply is None:
        return Reply(b"", 202, {})
    shelf.remove(id)
    return reply


def _get_video(request: Request, id: str) -> Any:
    reply = next(request.state.kept.videos.find(id))
    return Reply(b'{"status":"pending"}', 202) if reply is None else reply


def _post_file(request: Request) -> dict[str, Any]:
    parts = _read_form(request)
    name, content = parts.pop("file", (None, b""))
    if name is None:
        raise refuse(422, "The form has no file.")
    if len(content) > MAX_FILE_BYTES:
        raise refuse(413, f"The file is larger than {MAX_FILE_BYTES} bytes.")
    texts = {key: value.decode() for key, (_, value) in parts.items()}
    end = texts.get("expires_after[seconds]", texts.get("expires_after"))
    file = File(name, content, texts.get("purpose"), int(end) if end and end.isdecimal() else None)
    id = f"file_{uuid.uuid4()}"
    request.state.kept.files.add(id, file)
    return file.show(id)


def _get_content(request: Request, id: str) -> Reply:
    return Reply(request.state.kept.files.find(id).content, headers=FILE_HEADERS)


def _post_batch(request: Request) -> dict[str, Any]:
    """Make a batch, of a file's lines if one is named."""
    asked = decode(request.body, _BatchRequest)
    kept = request.state.kept
    batch = Batch(asked.name, kept.pending_polls)
    content = kept.files.find(asked.input_file_id).content if asked.input_file_id else b""
    lines = [decode(line, _Line) for line in content.splitlines() if line]
    _answer_all(request, batch, ((line.custom_id, line.body) for line in lines))
    id = f"batch_{uuid.uuid4()}"
    kept.batches.add(id, batch)
    return batch.show(id)


def _cancel_batch(request: Request, id: str) -> dict[str, Any]:
    batch = request.state.kept.batches.find(id)
    batch.cancelled = True
    return batch.show(id)


def _add_requests(request: Request, id: str) -> dict[str, Any]:
    batch = request.state.kept.batches.find(id)
    added = decode(request.body, _AddRequest).batch_requests
    chats = ((each.batch_request_id, each.batch_request.get("chat_get_completion", b"")) for each in added)
    _answer_all(request, batch, chats)
    return {}


def _list_requests(request: Request, id: str) -> dict[str, Any]:
    results = request.state.kept.batches.find(id).results
    names = [{"batch_request_id": each["batch_request_id"], "state": "succeeded"} for each in results]
    return {"batch_request_metadata": names, "pagination_token": None}


def _list_results(request: Request, id: str) -> dict[str, Any]:
    page, token = _cut_page(request, request.state.kept.batches.find(id).results, 1000)
    return {"results": page, "pagination_token": token}


def _answer_all(request: Request, batch: Batch, chats: Iterable[tuple[str, msgspec.Raw | bytes]]) -> None:
    """Answer a batch's chats, and note in the journal what they cost."""
    cost_ticks = 0
    request.state.journal.begin()
    for name, body in chats:
        result: dict[str, Any] = {"batch_request_id": name}
        batch.results.append(result)
        try:
            reply = answer_chat(request, bytes(body))
        except RefusalError as refusal:
            result["error_message"] = refusal.body.decode()
            continue
        reply["usage"]["cost_in_usd_ticks"] //= BATCH_DISCOUNT
        cost_ticks += reply["usage"]["cost_in_usd_ticks"]
        result["batch_result"] = {"response": {"chat_get_completion": reply}}
    note = Exchange("", request.path, "complete", 200, cost_ticks=cost_ticks, request_id=request.id)
    request.state.journal.end(note)


def _cut_page(request: Request, items: Sequence[Any], most: int) -> tuple[Sequence[Any], str | None]:
    """Return the page that the query asks for, and the token of the next one."""
    query = {"limit": [""], "pagination_token": [""]} | parse_qs(request.query)
    limit, token = query["limit"][0] or str(most), query["pagination_token"][0] or "0"
    if not limit.isdecimal() or not 1 <= int(limit) <= most or not token.isdecimal():
        raise refuse(400, f"limit must be between 1 and {most}, and pagination_token one from a list.")
    start, end = int(token), int(token) + int(limit)
    return items[start:end], str(end) if end < len(items) else None


def _read_form(request: Request) -> dict[str, tuple[str | None, bytes]]:
    """Return the parts of a multipart body by name: file name and content."""
    content_type = request.headers.get("Content-Type", "")
    if not content_type.startswith("multipart/form-data"):
        raise refuse(415, "The Content-Type must be multipart/form-data.")
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + request.body)
    parts: list[Message] = message.get_payload() if message.is_multipart() else []  # type: ignore[assignment]
    contents = ((part, part.get_payload(decode=True)) for part in parts)
    return {
        str(part.get_param("name", header="content-disposition")): (part.get_filename(), content)
        for part, content in contents
        if isinstance(content, bytes)
    }


KEPT_ROUTES: list[tuple[str, dict[str, Action]]] = [
    ("/v1/responses/([^/]+)", {"GET": partial(_get, "responses"), "DELETE": partial(_delete, "responses")}),
    ("/v1/chat/deferred-completion/([^/]+)", {"GET": _get_deferred}),
    ("/v1/videos/([^/]+)", {"GET": _get_video}),
    ("/v1/files", {"POST": _post_file, "GET": partial(_list, "files", "data")}),
    ("/v1/files/([^/]+)", {"GET": partial(_get, "files"), "DELETE": partial(_delete, "files")}),
    ("/v1/files/([^/]+)/content", {"GET": _get_content}),
    ("/v1/batches", {"POST": _post_batch, "GET": partial(_list, "batches", "batches")}),
    ("/v1/batches/([^/]+):cancel", {"POST": _cancel_batch}),
    ("/v1/batches/([^/]+)", {"GET": partial(_get, "batches")}),
    ("/v1/batches/([^/]+)/requests", {"POST": _add_requests, "GET": _list_requests}),
    ("/v1/batches/([^/]+)/results", {"GET": _list_results}),
]
