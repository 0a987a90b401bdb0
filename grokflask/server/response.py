"""gunicorn's response, with the head and the first bytes in one send, and its error replies as JSON."""

from __future__ import annotations

import json
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi


class Response(wsgi.Response):  # type: ignore[misc]
    """gunicorn's response, which sends its head together with the first bytes of the body.

    gunicorn makes the head when there is something to send after it, so nothing is delayed. Two sends would
    wake the client twice and cost a second system call.
    """

    headers_sent: bool
    _unsent = b""

    def send_headers(self) -> None:
        """Makes the head, and keeps it until `write` or `close` sends it.

        The connection closes after the response if the request's body has not been received to its end.
        """
        if self.headers_sent:
            return
        body = self.req.body
        if not getattr(body, "complete", True) and not body.skip():  # a request without one keeps gunicorn's
            self.force_close()
        lines = [*self.default_headers(), *[f"{name}: {value}\r\n" for name, value in self.headers], "\r\n"]
        self._unsent = "".join(lines).encode("latin-1")
        self.headers_sent = True

    def write(self, arg: bytes) -> None:
        """Sends bytes of the body. A response that has no body sends its head."""
        super().write(arg)
        self._flush()

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            data = b"%s%X\r\n%s\r\n" % (self._unsent, len(data), data)
        elif self._unsent:
            data = self._unsent + data
        self._unsent = b""
        _send(self.sock, data)

    def sendfile(self, respiter: object) -> bool:
        """Always False: the file would overtake the head."""
        return False

    def close(self) -> None:
        """Sends the head if nothing has, and the last chunk."""
        self.send_headers()
        if self.chunked:
            self._unsent += b"0\r\n\r\n"
        self._flush()

    def _flush(self) -> None:
        if self._unsent:
            data, self._unsent = self._unsent, b""
            _send(self.sock, data)


def _send(sock: Any, data: bytes) -> None:
    """Like gevent's `sendall`, which asks for the size of the kernel's buffer before each send."""
    sent = sock.send(data)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def write_error(sock: Any, status: int, reason: str, message: str) -> None:
    """Answers a request that is not valid HTTP, and so never reaches the app, with an error of the API."""
    error = {
        "message": message or reason,
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
        "code": "malformed_request" if status < 500 else "internal_error",
    }
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(sock, head.encode("latin-1") + body)
