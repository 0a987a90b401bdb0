"""An app that answers with what the server has made of the request: the texts of its WSGI environment."""

import json
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    texts = {name: value for name, value in environ.items() if isinstance(value, str)}
    body = json.dumps(texts).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
