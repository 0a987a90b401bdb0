"""/metrics by Flask's client: who may see it, and what requests add to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from support.figures import Samples, parse_figures
from support.pages import find_blocks
from support.processes import CLIENT_KEY, UPSTREAM_KEY
from support.scripted import Exchange, ScriptedUpstream, chat_chunk

from grokflask import create_app
from grokflask.config import load_settings
from grokflask.metrics.families import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
TOKEN = "metrics-token-0123456789"
ADMIN_TOKEN = "admin-token-0123456789"
CHAT = "/api/v1/chat/completions"
AUTH = {"Authorization": f"Bearer {CLIENT_KEY}", "Accept": "application/json"}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def metered(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """The app with a token for its metrics."""
    return make_client(GROKFLASK_METRICS_TOKEN=TOKEN, GROKFLASK_RATE_LIMIT="8/hour")


def scrape(client: FlaskClient, token: str = TOKEN) -> Samples:
    reply = client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    return parse_figures(reply.text)


def ask(client: FlaskClient, headers: dict[str, str] = AUTH, path: str = CHAT, **body: Any) -> int:
    reply = client.post(path, json={**BODY, **body}, headers=headers)
    reply.get_data()
    reply.close()
    return reply.status_code


@pytest.mark.parametrize(
    ("tokens", "asked", "status"),
    [
        ({}, TOKEN, 404),
        ({"GROKFLASK_METRICS_TOKEN": TOKEN}, TOKEN, 200),
        ({"GROKFLASK_METRICS_TOKEN": TOKEN}, None, 401),
        ({"GROKFLASK_METRICS_TOKEN": TOKEN}, CLIENT_KEY, 401),
        ({"GROKFLASK_METRICS_TOKEN": TOKEN}, ADMIN_TOKEN, 401),
        ({"GROKFLASK_METRICS_TOKEN": TOKEN}, f"{TOKEN}é", 401),
        ({"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN}, ADMIN_TOKEN, 200),
        ({"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN}, None, 401),
        ({"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "GROKFLASK_METRICS_TOKEN": TOKEN}, ADMIN_TOKEN, 200),
        ({"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "GROKFLASK_METRICS_TOKEN": TOKEN}, TOKEN, 200),
    ],
)
def test_who_may_see_it(
    make_client: Callable[..., FlaskClient], tokens: dict[str, str], asked: str | None, status: int
) -> None:
    """The metrics token and the admin token open it. It shows costs, so without a token it is closed."""
    headers = {} if asked is None else {"Authorization": f"Bearer {asked}"}
    reply = make_client(**tokens).get("/metrics", headers=headers)
    assert reply.status_code == status
    if status != 200:
        assert "grokflask_" not in reply.text
        assert reply.json is not None
        assert reply.json["error"]["message"]


def test_the_metrics_token_opens_nothing_else(make_client: Callable[..., FlaskClient]) -> None:
    """The token is in Prometheus' configuration, so it opens neither the admin API nor the API."""
    client = make_client(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN, GROKFLASK_METRICS_TOKEN=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/admin/api/keys", headers=headers).status_code == 401
    assert client.get("/api/v1/models", headers=headers).status_code == 401


def test_the_sandbox_needs_no_token(tmp_path: Path) -> None:
    """Its numbers are invented, and a newcomer has not set a token."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    app = create_app(load_settings({"DATABASE_URL": url}, dotenv=None))
    try:
        reply = app.test_client().get("/metrics")
        assert reply.status_code == 200
        assert parse_figures(reply.text)["grokflask_workers"] == 1
    finally:
        app.extensions["sandbox"].close()
        app.extensions["background"].close()
        app.extensions["database"].close()


def test_what_requests_add(metered: FlaskClient, upstream: ScriptedUpstream) -> None:
    """Answers by route and status, refusals by code, outcomes, durations and tokens."""
    assert [ask(metered, stream=True) for _ in range(2)] == [200, 200]
    assert ask(metered) == 200
    assert ask(metered, {**AUTH, "Authorization": "Bearer unknown"}) == 401
    assert metered.get("/api/v1/nothing", headers=AUTH).status_code == 404
    assert metered.get(CHAT, headers=AUTH).status_code == 405
    assert metered.options(CHAT).status_code in (200, 204)
    assert ask(metered, messages="none") == 400
    upstream.handler = lambda exchange: exchange.reply({"error": "no"}, 429)
    assert ask(metered) == 429
    upstream.handler = lambda exchange: exchange.reset()
    assert ask(metered) == 502
    figures = scrape(metered)
    answers = {name: value for name, value in figures.items() if name.startswith("grokflask_requests_total")}
    assert answers == {
        "grokflask_requests_total{route=chat,status=200}": 3,
        "grokflask_requests_total{route=chat,status=401}": 1,
        "grokflask_requests_total{route=chat,status=400}": 1,
        "grokflask_requests_total{route=chat,status=429}": 1,
        "grokflask_requests_total{route=chat,status=502}": 1,
        "grokflask_requests_total{route=none,status=404}": 1,
        "grokflask_requests_total{route=none,status=405}": 1,
        "grokflask_requests_total{route=preflight,status=200}": 1,
    }
    assert figures["grokflask_refused_total{code=invalid_api_key}"] == 1
    assert figures["grokflask_refused_total{code=not_found}"] == 1
    assert figures["grokflask_refused_total{code=method_not_allowed}"] == 1
    assert figures["grokflask_refused_total{code=rate_limit_exceeded}"] == 0
    assert figures["grokflask_upstream_errors_total{kind=status_429}"] == 1
    assert figures["grokflask_exchanges_total{outcome=complete,route=chat}"] == 3
    assert figures["grokflask_time_to_first_event_seconds_count"] == 2
    assert figures["grokflask_exchange_duration_seconds_count{stream=true}"] == 2
    assert figures["grokflask_event_delay_seconds_count"] >= 2
    assert figures["grokflask_open_exchanges"] == figures["grokflask_open_streams"] == 0
    assert figures["grokflask_database_up"] == 1
    assert "grokflask_redis_up" not in figures


def test_a_limit_refuses(make_client: Callable[..., FlaskClient]) -> None:
    """The limit of requests per window refuses before an exchange starts, and is counted too."""
    client = make_client(GROKFLASK_METRICS_TOKEN=TOKEN, GROKFLASK_RATE_LIMIT="1/hour")
    assert [ask(client) for _ in range(3)] == [200, 429, 429]
    figures = scrape(client)
    assert figures["grokflask_refused_total{code=rate_limit_exceeded}"] == 2
    assert figures["grokflask_requests_total{route=chat,status=429}"] == 2


def test_hostile_models(make_client: Callable[..., FlaskClient], upstream: ScriptedUpstream) -> None:
    """A requested model is never a label; a served one is, up to a fixed number of them."""

    def echo(exchange: Exchange) -> None:
        exchange.reply({"model": exchange.document["model"], "choices": [{}], "usage": {"prompt_tokens": 1}})

    client = make_client(GROKFLASK_METRICS_TOKEN=TOKEN)
    upstream.handler = lambda exchange: exchange.reply({"error": "no such model"}, 404)
    for number in range(40):
        ask(client, model=f"asked-{number}")
    assert not any("asked" in name for name in scrape(client))
    upstream.handler = echo
    for number in range(40):
        ask(client, model=f'm"{number}\\\n')
    models = [name for name in scrape(client) if name.startswith("grokflask_tokens_total{kind=prompt,")]
    assert len(models) == 21


def test_key_names_need_a_setting(make_client: Callable[..., FlaskClient]) -> None:
    """Key names can be personal, so they need a setting; secrets never appear."""
    client = make_client(GROKFLASK_METRICS_TOKEN=TOKEN)
    ask(client)
    assert not any("alice" in name for name in scrape(client))
    client = make_client(GROKFLASK_METRICS_TOKEN=TOKEN, GROKFLASK_METRICS_KEYS="true")
    ask(client)
    figures = scrape(client)
    assert figures["grokflask_key_exchanges_total{key=alice,outcome=complete}"] == 1
    assert figures["grokflask_key_cost_usd_total{key=alice}"] > 0
    assert not any(secret in name for name in figures for secret in (CLIENT_KEY, UPSTREAM_KEY))


def test_a_stream_that_is_open(metered: FlaskClient, upstream: ScriptedUpstream) -> None:
    """It counts as open from its first event until its client leaves."""
    upstream.handler = lambda exchange: (
        exchange.start(),
        exchange.event(chat_chunk("Once")),
        exchange.wait_until_left(),
    )
    reply = metered.post(CHAT, json={**BODY, "stream": True}, headers=AUTH, buffered=False)
    assert next(iter(reply.response))
    assert scrape(metered)["grokflask_open_streams"] == 1
    reply.close()
    figures = scrape(metered)
    assert figures["grokflask_open_streams"] == 0
    assert figures["grokflask_exchanges_total{outcome=client_abort,route=chat}"] == 1


@pytest.mark.parametrize("page", ["grafana/dashboard.json", "grafana/alerts.yml", "metrics.md"])
def test_the_docs_name_existing_metrics(page: str) -> None:
    """The dashboard, the alerts and the page use only metrics and labels that exist."""
    text = (DOCS / page).read_text(encoding="utf-8")
    known: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[
            family.kind
        ]
        for end in ends:
            known[family.name + end] = family.labels + (("le",) if end == "_bucket" else ())
    if page == "metrics.md":
        known |= {family.name: family.labels for family in FAMILIES}
    used = re.findall(r"\b(grokflask_[a-z_]+)\b(?:\{([^}]*)\})?", text.replace('\\"', '"'))
    assert used
    for name, matchers in used:
        assert name in known, name
        for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers):
            assert label in (*known[name], "job", "instance"), (name, label)
    if page == "metrics.md":
        told = {f.name + "_total" if f.kind == "counter" else f.name for f in FAMILIES}
        assert {name for name, _ in used} >= told


def test_the_scrape_config(metered: FlaskClient) -> None:
    """The scrape configuration of the page is valid, finds /metrics, and names existing rule files."""
    (block,) = find_blocks("docs/metrics.md", "yaml")
    config = yaml.safe_load(block.text)
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"]
    kind = job["authorization"].get("type", "Bearer")  # Prometheus' defaults
    header = {"Authorization": f"{kind} {TOKEN}"}
    assert metered.get(job.get("metrics_path", "/metrics"), headers=header).status_code == 200
    rules = [yaml.safe_load((DOCS / "grafana" / name).read_text()) for name in config["rule_files"]]
    assert all(group["rules"] for each in rules for group in each["groups"])


def test_the_dashboard_can_be_imported() -> None:
    """Grafana can import it: panels do not overlap, and each has a title and queries the source."""
    board = json.loads((DOCS / "grafana/dashboard.json").read_text(encoding="utf-8"))
    assert board["title"]
    assert [each["type"] for each in board["templating"]["list"]] == ["datasource"]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${source}"
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) > 5
