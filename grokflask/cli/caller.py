"""How a command calls a running gateway: its address, the key, and errors explained in words.

Such a command is an ordinary client and sees what every client sees.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import click
import requests

from grokflask.cli.terminal import clean_line
from grokflask.config import Settings
from grokflask.errors import UpstreamProtocolError
from grokflask.protocol.routes import PREFIXES
from grokflask.protocol.sse import EventDecoder, Run
from grokflask.protocol.upstream_errors import parse_error
from grokflask.setting_types import read_base_url

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 330.0
"""Longer than any GROKFLASK_HEARTBEAT_S: a gateway that is silent for longer is gone."""

MAX_DETAIL_CHARS = 500
MAX_BODY_BYTES = 2**20


class CallError(click.ClickException):
    """A call failed. The message is for the user of the command."""


class Caller(requests.Session):
    """Calls the gateway at `url`, which has no path, with `key` as bearer token; None sends none."""

    def __init__(self, url: str, key: str | None) -> None:
        super().__init__()
        self.url = url
        self._key = key
        # Proxies of the environment are for other hosts, and .netrc has no gateway keys.
        self.trust_env = not is_local(url)
        self.auth = self._sign
        self.headers["Accept-Encoding"] = "identity"

    @contextmanager
    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float = SILENCE_S,
    ) -> Iterator[requests.Response]:
        """The answer with any status, its body unread. The connection closes at the end. Raises CallError."""
        try:
            with self.request(
                method,
                self.url + path,
                json=body,
                headers=headers,
                timeout=(CONNECT_TIMEOUT_S, silence_s),
                allow_redirects=False,  # the key is for this address only
                stream=True,
            ) as reply:
                yield reply
        except (requests.RequestException, OSError) as error:
            raise CallError(explain_failure(error, self.url)) from error

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def read_pieces(reply: requests.Response) -> Iterator[bytes]:
    """The pieces of the body as they arrive. Raises CallError if the body is cut."""
    from urllib3.exceptions import HTTPError

    try:
        while piece := reply.raw.read1(65536, decode_content=True):
            yield piece
    except (HTTPError, OSError) as error:
        raise CallError("The connection was cut before the answer was complete.") from error


def read_events(reply: requests.Response) -> Iterator[bytes]:
    """The data of each event as it arrives. Raises CallError if the body is cut."""
    decoder = EventDecoder()
    try:
        for piece in read_pieces(reply):
            for event in decoder.feed(piece):
                yield from event[6:-2].split(b"\n\ndata: ") if isinstance(event, Run) else (event,)
    except UpstreamProtocolError:
        raise CallError("The gateway sent an event that is too long.") from None
    yield from decoder.finish()


def read_start(reply: requests.Response) -> bytes:
    """The body, or the beginning of a large one. Raises CallError if the body is cut."""
    body = b""
    for piece in read_pieces(reply):
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return body


def read_url(url: str | None, port: int) -> str:
    """Parses the address of a gateway; the default is this machine. Raises BadParameter."""
    if url is None:
        return f"http://127.0.0.1:{port}"
    try:
        base = read_base_url(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--url") from None
    for prefix in PREFIXES:  # the base URL that an SDK is given
        base = base.removesuffix(prefix)
    return base


def find_key(option: str | None, settings: Settings | None) -> str | None:
    """The key to call with: the option's, GROKFLASK_KEY, or the first of GROKFLASK_KEYS; None without any.

    Raises BadParameter if it cannot be sent in a header.
    """
    key = (option or os.environ.get("GROKFLASK_KEY") or "").strip()
    if not key and settings is not None and settings.keys:
        key = settings.keys[0][1]
    if not all("!" <= letter <= "~" for letter in key):
        raise click.BadParameter("A key consists of visible ASCII characters.", param_hint="--key")
    return key or None


def is_local(url: str) -> bool:
    """The address is a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_safe(url: str) -> bool:
    """Data sent there is encrypted, or does not leave this machine."""
    return urlsplit(url).scheme == "https" or is_local(url)


def explain_failure(error: Exception, url: str) -> str:
    """Why there was no answer."""
    text = clean_line(str(error))[:MAX_DETAIL_CHARS]
    if isinstance(error, requests.exceptions.SSLError):
        return f"The certificate of {url} is not trusted here: {text}"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"The proxy of the environment (HTTPS_PROXY, HTTP_PROXY) does not reach {url}."
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"{url} does not answer: check the address, and that no firewall blocks it."
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in text:
        return f"{url} was silent for too long."
    if "Connection refused" in text:
        return f"Nothing listens at {url}: is the gateway running? `make run` starts one."
    if "resolve" in text:
        return f"The host name in {url} is unknown: is the address right?"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"{url} closed the connection without an answer: is it a gateway, and is http or https right?"
    return f"{url} cannot be called: {text}"


def explain_status(reply: requests.Response) -> str:
    """Explains an error response, and what to do. Reads its body. Raises CallError if the body is cut."""
    status, message = reply.status_code, read_message(read_start(reply))
    if reply.is_redirect:
        return f"The gateway has moved to {clean_line(reply.headers['Location'])}: use that as --url."
    if status == 401:
        return (
            f"{message} (401) Give a key with --key or in GROKFLASK_KEY; "
            "`flask --app wsgi keys create NAME` makes one."
        )
    if status in (429, 503) and "Retry-After" in reply.headers:
        wait = clean_line(reply.headers["Retry-After"])
        return f"{message} ({status}) Wait {wait}{' s' if wait.isdigit() else ' until then'}."
    if status == 404 and not message:
        return f"There is no API at {reply.url} (404): is it a gateway's address?"
    return f"{message or 'The gateway refused.'} ({status})"


def read_message(body: bytes) -> str:
    """The message of an error response in any of the shapes, or ""."""
    errors = (parse_error(line.removeprefix(b"data: ")) for line in (body, *body.splitlines()))
    message = next((error.message for error in errors if error.has_message), "")
    return clean_line(message)[:MAX_DETAIL_CHARS]
