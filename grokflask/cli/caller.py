"""The way from a command to a running gateway: its address, the key to call with, and what fails, in words.

The commands are clients like any other here: what they see is what every client sees.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import click
import msgspec
import requests

from grokflask.cli.terminal import clean_line
from grokflask.config import Settings
from grokflask.errors import MALFORMED
from grokflask.protocol.routes import PREFIXES
from grokflask.setting_types import read_base_url

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 330.0
"""Longer than any GROKFLASK_HEARTBEAT_S: a gateway that says nothing for so long is gone."""

MAX_DETAIL_CHARS = 500
MAX_BODY_BYTES = 2**20


class CallError(click.ClickException):
    """The gateway did not do what it was asked. The message is for the command's user."""


class Caller:
    """Calls one gateway with one key. Close it, or use it in a `with`.

    Args:
        url: the gateway's address, without a path of the API.
        key: sent as bearer, None to send none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._key = key
        self._session = requests.Session()
        # The environment's proxies are for other hosts, and a line in .netrc is not the key.
        self._session.trust_env = not is_local(url)
        self._session.auth = self._sign

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. Idempotent."""
        self._session.close()

    @contextmanager
    def call(
        self, method: str, path: str, *, body: object = None, silence_s: float = SILENCE_S, **headers: str
    ) -> Iterator[requests.Response]:
        """The answer, whatever its status, unread; its connection is closed at the end. Raises CallError."""
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            given["Content-Type"] = "application/json"
        reply = None
        try:
            reply = self._session.request(
                method,
                self.url + path,
                data=None if body is None else msgspec.json.encode(body),
                headers={"Accept-Encoding": "identity", **given},
                timeout=(CONNECT_TIMEOUT_S, silence_s),
                allow_redirects=False,  # the key is for this address alone
                stream=True,
            )
            yield reply
        except (requests.RequestException, OSError) as error:
            raise CallError(explain_failure(error, self.url)) from error
        finally:
            if reply is not None:
                reply.close()

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def read_pieces(reply: requests.Response) -> Iterator[bytes]:
    """The body as it comes, each piece as soon as it is there. Raises CallError when it is cut."""
    from urllib3.exceptions import HTTPError

    try:
        while piece := reply.raw.read1(65536, decode_content=True):
            yield piece
    except (HTTPError, OSError) as error:
        raise CallError("The connection was cut before the answer was complete.") from error


def read_start(reply: requests.Response) -> bytes:
    """The body, or what of it is read for a message. Raises CallError when it is cut."""
    body = b""
    for piece in read_pieces(reply):
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return body


def read_url(url: str | None, port: int) -> str:
    """The address of a gateway as its user gives it, else this machine's. Raises BadParameter."""
    if url is None:
        return f"http://127.0.0.1:{port}"
    try:
        base = read_base_url(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--url") from None
    for prefix in PREFIXES:  # the base URL that an SDK is given
        base = base.removesuffix(prefix)
    return base


def find_key(given: str | None, settings: Settings | None) -> str | None:
    """The key to call with: the given one, GROKFLASK_KEY, or the first of GROKFLASK_KEYS; None for none.

    Raises BadParameter when it cannot stand in a header.
    """
    key = (given or os.environ.get("GROKFLASK_KEY") or "").strip()
    if not key and settings is not None and settings.keys:
        key = settings.keys[0][1]
    if not all("!" <= letter <= "~" for letter in key):
        raise click.BadParameter("A key has visible ASCII characters only.", param_hint="--key")
    return key or None


def is_local(url: str) -> bool:
    """The address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_safe(url: str) -> bool:
    """What is sent there crosses no network in the clear."""
    return urlsplit(url).scheme == "https" or is_local(url)


def explain_failure(error: Exception, url: str) -> str:
    """Why there was no answer."""
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"{url} has no certificate that this machine trusts: {clean_line(str(error))[:MAX_DETAIL_CHARS]}"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return f"The proxy that the environment names (HTTPS_PROXY, HTTP_PROXY) does not lead to {url}."
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"{url} does not answer: is the address right, and does a firewall let it through?"
    if isinstance(error, requests.exceptions.ConnectionError):
        text = str(error)
        if "Connection refused" in text:
            return f"Nothing listens at {url}: is the gateway running? `make run` starts one."
        if "resolve" in text:
            return f"The name in {url} is not known: is the address right?"
        if isinstance(error, requests.exceptions.ReadTimeout) or "timed out" in text:
            return f"{url} was silent for too long."
        return (
            f"{url} closed the connection without an answer: is it a gateway, and http or https as it should?"
        )
    if isinstance(error, requests.exceptions.Timeout):
        return f"{url} was silent for too long."
    return f"{url} cannot be called: {clean_line(str(error))[:MAX_DETAIL_CHARS]}"


def explain_status(reply: requests.Response) -> str:
    """What an answer that is none means, and what to do. Reads its body; raises CallError if it is cut."""
    status, said = reply.status_code, read_message(read_start(reply))
    if reply.is_redirect:
        return (
            f"The gateway's address has moved to {clean_line(reply.headers['Location'])}: give that as --url."
        )
    if status == 401:
        return (
            f"{said} (401) Give a key with --key or in GROKFLASK_KEY; "
            "`flask --app wsgi keys create NAME` makes one."
        )
    if status in (429, 503) and "Retry-After" in reply.headers:
        wait = clean_line(reply.headers["Retry-After"])
        return f"{said} ({status}) Wait {wait}{' s' if wait.isdigit() else ' until then'}."
    if status == 404 and not said:
        return f"There is no API at {reply.url} (404): is it a gateway's address?"
    return f"{said or 'The gateway refused.'} ({status})"


def read_message(body: bytes) -> str:
    """The error's message in an answer of any of the shapes; "" where there is none."""
    for line in (body, *body.splitlines()):
        try:
            document: Any = msgspec.json.decode(line.removeprefix(b"data: "))
        except MALFORMED:
            continue
        if isinstance(document, dict) and "error" in document:
            return name_error(document["error"])
    return ""


def name_error(error: object) -> str:
    """The message of an error as a stream or an answer tells it, on one line."""
    message = error.get("message") if isinstance(error, dict) else error
    return clean_line(str(message))[:MAX_DETAIL_CHARS] or "The gateway reports an error without a message."
