"""The playground's page and its renderer, as a client sees them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from support.processes import CLIENT_KEY

KEY = {"Authorization": f"Bearer {CLIENT_KEY}"}
URL = "/playground/render"


def test_the_page(client: FlaskClient) -> None:
    """It lets nothing foreign in, and tells its script what it needs, no secret among it."""
    page = client.get("/")
    assert page.status_code == 200
    assert page.content_type == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = page.get_data(as_text=True)
    facts = json.loads(text.split('id="bootstrap">')[1].split("</script>")[0])
    assert facts == {
        "auth": "keys",
        "prefix": "/api/v1",
        "chatModel": "grok-4.3",
        "imageModel": "grok-imagine-image",
        "maxBodyBytes": 64 * 2**20,
        "visionStreams": False,
        "cancels": True,
    }
    assert "style=" not in text
    assert "onclick" not in text


def test_its_files(client: FlaskClient) -> None:
    """Every script and style that the page names is there."""
    text = client.get("/").get_data(as_text=True)
    names = {
        word.split('"')[1] for word in text.split() if word.startswith(('href="/static', 'src="/static'))
    }
    assert len(names) > 15
    for name in names:
        with client.get(name) as file:
            assert file.status_code == 200, name


def test_without_a_playground(make_client: Callable[..., FlaskClient]) -> None:
    """Turned off, there is nothing at `/` but the usual 404 in JSON, and no renderer."""
    client = make_client(GROKFLASK_PLAYGROUND="off")
    for answer in (client.get("/"), client.post(URL, json={"text": "a"}, headers=KEY)):
        assert answer.status_code == 404
        assert answer.json["error"]["code"] == "not_found"


def test_rendering(client: FlaskClient) -> None:
    """Markdown in, harmless HTML out, kept by no cache."""
    answer = client.post(URL, json={"text": "**a** <script>"}, headers=KEY)
    assert answer.json == {"html": "<p><strong>a</strong> &lt;script&gt;</p>\n"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong-secret-key"}])
def test_rendering_is_for_callers(client: FlaskClient, headers: dict[str, str]) -> None:
    """Who may not call the API has nothing rendered either."""
    answer = client.post(URL, json={"text": "a"}, headers=headers)
    assert answer.status_code == 401
    assert answer.json["error"]["code"] == "invalid_api_key"


def test_open_to_all(make_client: Callable[..., FlaskClient]) -> None:
    """Where anybody may call, anybody may."""
    client = make_client(GROKFLASK_AUTH="open", GROKFLASK_KEYS="")
    assert client.post(URL, json={"text": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b'{"text": "' + b"a" * 256 * 1024 + b'"}', "application/json", 413),
        (b'{"text": "' + b"a" * 100 * 1024 + b'"}', "application/json", 422),
        (b'{"text": 1}', "application/json", 400),
        (b'{"text": "\xff"}', "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"text": "a"}', "text/plain", 415),
    ],
)
def test_what_is_refused(client: FlaskClient, body: bytes, media_type: str, status: int) -> None:
    """Too much, too slow, not JSON: told as everywhere, with an error in JSON."""
    answer = client.post(URL, data=body, content_type=media_type, headers=KEY)
    assert answer.status_code == status
    assert answer.json["error"]["message"]


def test_a_body_without_length(client: FlaskClient) -> None:
    """A body that does not say how long it is, is not read."""
    headers = {**KEY, "Transfer-Encoding": "chunked"}
    answer = client.post(URL, content_type="application/json", headers=headers)
    assert answer.status_code == 413
