"""/openapi.json: the API as an OpenAPI 3.1 document, built from the tables that the gateway uses. No IO.

Paths, methods and queries come from `protocol.routes`, errors from `errors`, descriptions from the modules
beside this one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from grokflask.protocol.dialects import MESSAGES
from grokflask.protocol.routes import PREFIXES, ROUTES, Route
from grokflask.web.reference import errors
from grokflask.web.reference.operations import API, OWN, Operation
from grokflask.web.reference.schemas import ANSWERS, TEXT, refer

_ABOUT = """A streaming gateway in front of xAI's API. All paths below `{prefix}` also exist below `{other}`.

Request bodies pass through to [xAI's API](https://docs.x.ai/docs/api-reference), which documents all their
fields; only the fields that the gateway reads itself are listed here. With `stream: true` the answer is a
stream of events (`text/event-stream`). Each event is a line `data: {{json}}` and a blank line, and the last
is `data: [DONE]` (`/responses` and `/messages` end as those APIs do). Comment lines keep an idle connection
open. An error inside a stream is an event with `error` in it, and the stream ends there.

<details><summary>All error codes</summary>

{codes}

</details>
"""

_HEADERS = {
    "X-Request-ID": "Your own id, or one made by the gateway. It is in every log line about the request.",
    "X-Upstream-Request-ID": "xAI's id of the request.",
    "X-Grokflask-Upstream": "`sandbox` if the answer is made up.",
    "X-RateLimit-Limit": "Requests that the key may make per window.",
    "X-RateLimit-Remaining": "Requests that are left.",
    "X-RateLimit-Reset": "When more requests are allowed, in seconds since 1970.",
    "X-RateLimit-Limit-Tokens": "Tokens that the key may use per minute.",
    "X-RateLimit-Remaining-Tokens": "Tokens that are left.",
    "X-Stream-Fallback": "Why a request to stream was answered whole: `vision`, `images` or `deferred`.",
    "X-Params-Dropped": "Fields that xAI would refuse, and that the gateway removed.",
    "X-Model-Served": "The model that answered, if it is not the requested one.",
    "X-Output-Cap": "The cap that the gateway has set because the key's budget has no more.",
    "Idempotent-Replayed": "`true` if an earlier request with the same Idempotency-Key got this answer.",
    "Age": "Seconds since the gateway fetched this from xAI.",
    "Retry-After": "Seconds to wait before trying again.",
    "x-should-retry": "`false` if OpenAI's SDKs should not try again.",
    "WWW-Authenticate": "`Bearer`.",
    "Allow": "The methods that this path has.",
    "ETag": "Changes with the document.",
}
_ON_ALL = list(_HEADERS)[:8]
_ON_POSTS = list(_HEADERS)[8:13]
_ON_ERRORS = [name for name in list(_HEADERS)[:10] if name not in list(_HEADERS)[1:3]]

_PARAMETERS = {
    "X-Request-ID": ("Your own id for the request: up to 128 letters, digits and `. _ : -`.", {}),
    "Idempotency-Key": (
        "A new key for each request. A repetition gets the answer to the first request.",
        {"pattern": r"^[ -~]{1,255}$"},
    ),
    "X-Stream-Resume": ("`true` gives events ids, so that a broken stream can be resumed.", {}),
    "Last-Event-ID": ("With the same Idempotency-Key: resume the stream after this event.", {}),
    "x-grok-conv-id": ("An id of the conversation, for xAI's prompt cache.", {}),
}
_SEGMENT = TEXT | {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"}

_SCHEMES = {
    "clientKey": "A key of this gateway. With GROKFLASK_AUTH=passthrough: a key of xAI.",
    "adminToken": "GROKFLASK_ADMIN_TOKEN. Without one these paths do not exist.",
    "metricsToken": "GROKFLASK_METRICS_TOKEN or GROKFLASK_ADMIN_TOKEN.",
}


def build_document(version: str, *, is_open: bool = False) -> dict[str, Any]:
    """The document of this version of the gateway. With `is_open` clients need no key."""
    paths: dict[str, dict[str, Any]] = {}
    operations = {
        (route.method, PREFIXES[0] + re.sub(r"<(\w+)>", r"{\1}", route.path)): _complete(route)
        for route in ROUTES
    }
    for (method, path), operation in {**operations, **OWN}.items():
        paths.setdefault(path, {})[method.lower()] = _describe(method, path, operation, is_open)
    tags = dict.fromkeys(operation.tag for operation in (*API.values(), *OWN.values()))
    about = _ABOUT.format(prefix=PREFIXES[0], other=PREFIXES[1], codes=errors.list_codes())
    return {
        "openapi": "3.1.0",
        "info": {"title": "grokflask", "version": version, "description": about},
        "servers": [{"url": "/", "description": "This gateway."}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": _list_components(),
    }


def _list_components() -> dict[str, Any]:
    schemes: dict[str, Any] = {
        name: {"type": "http", "scheme": "bearer", "description": text} for name, text in _SCHEMES.items()
    }
    schemes["anthropicKey"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "schemas": {**ANSWERS, **errors.SCHEMAS},
        "responses": errors.build_responses(_ON_ERRORS),
        "headers": {name: {"description": text, "schema": TEXT} for name, text in _HEADERS.items()},
        "parameters": {
            name: {"name": name, "in": "header", "description": text, "schema": TEXT | pattern}
            for name, (text, pattern) in _PARAMETERS.items()
        },
        "securitySchemes": schemes,
    }


def _complete(route: Route) -> Operation:
    """The route's operation, with all that follows from its row in the table."""
    posts, messages = route.method == "POST", route.dialect is MESSAGES
    from_upstream = bool(route.upstream_path)
    errors = {401, 403, 429, 500, 503}
    errors |= {502, 504, 507} if from_upstream else set()
    errors |= {404} if "<" in route.path else set()
    errors |= {400, 404, 409, 410, 422} if posts else set()
    errors |= {408, 413, 415} if posts and route.body != "none" else set()
    return replace(
        API[route.method, route.name],
        request_type="multipart/form-data" if route.body == "form" else "application/json",
        events="UpstreamAnswer" if route.streams else "",
        errors=(*sorted(errors), *(("default",) if from_upstream else ())),
        shape="Messages" if messages else "Stream" if route.streams else "",
        query={name: {"type": "integer"} if name == "limit" else TEXT for name in route.query},
        headers=(*_ON_ALL, *(_ON_POSTS if posts else ()), *(("Age",) if route.catalogue else ())),
        parameters=(
            "X-Request-ID",
            *(("Idempotency-Key",) if posts else ()),
            *(("X-Stream-Resume", "Last-Event-ID") if route.streams else ()),
            *(("x-grok-conv-id",) if route.billing == "tokens" else ()),
        ),
        tokens=("clientKey", "anthropicKey") if messages else ("clientKey",),
    )


def _describe(method: str, path: str, operation: Operation, is_open: bool) -> dict[str, Any]:
    name = path.removeprefix(PREFIXES[0]).replace(":", "_now_")
    segment = _SEGMENT if path.startswith(PREFIXES[0]) else TEXT
    refusals = {
        str(status): refer(f"{operation.shape}Error{status}", "responses") for status in operation.errors
    }
    body = {}
    if operation.body is not None:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        content = {operation.request_type: {"schema": operation.body, "examples": examples}}
        body = {"requestBody": {"required": operation.body_required, "content": content}}
    security: list[dict[str, list[str]]] = [{token: []} for token in operation.tokens]
    if is_open and "clientKey" in operation.tokens:
        security.append({})
    return body | {
        "operationId": "_".join(re.findall(r"[a-z0-9]+", f"{method}/{name}".lower())),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": segment}
                for name in re.findall(r"\{(\w+)\}", path)
            ),
            *({"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()),
            *(refer(name, "parameters") for name in operation.parameters),
        ],
        "responses": _list_answers(operation) | refusals,
        "security": security,
    }


def _list_answers(operation: Operation) -> dict[str, Any]:
    """The responses that are not errors, by status.

    OpenAPI 3.1 cannot describe events, and the `itemSchema` of 3.2 would not be valid in it.
    """
    content: dict[str, Any] = {
        operation.media_type: {"schema": refer(operation.answer)} if operation.answer else {}
    }
    if operation.events:
        content["text/event-stream"] = {"schema": TEXT, "x-event-schema": refer(operation.events)}
    headers = {name: refer(name, "headers") for name in operation.headers}
    return {
        str(status): {"description": text, "headers": headers, "content": {} if status == 304 else content}
        for status, text in {operation.status: f"{operation.summary}.", **operation.more}.items()
    }
