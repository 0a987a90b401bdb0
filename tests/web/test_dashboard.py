"""The dashboard in a browser, on real gunicorn: what an operator does with it, and what it does by itself."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, Route, expect
from support.browser import DESKTOP, PHONE, Visit
from support.databases import PostgresServer
from support.processes import GatewayServer, RedisServer, start_gateway
from support.scripted import WAIT_S, Exchange, ScriptedUpstream, answer_chat, chat_chunk
from support.seeding import seed_ledger
from support.stores import ADMIN, ADMIN_TOKEN, KeyedGateway

from grokflask.storage.database import Database

CHAT: dict[str, Any] = {"model": "grok-4.3", "messages": [{"role": "user", "content": "hello"}]}
HELD = "held"


@pytest.fixture(scope="module")
def upstream_server() -> Iterator[ScriptedUpstream]:
    """Answers at once, but for requests whose user is HELD: these get one event, and then nothing."""

    def answer(exchange: Exchange) -> None:
        if exchange.document.get("user") != HELD:
            answer_chat(exchange)
            return
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.wait_until_left()

    server = ScriptedUpstream(answer)
    yield server
    server.close()


@pytest.fixture(scope="module")
def filled(
    upstream_server: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """A gateway with a varied ledger, where changed keys hold at once."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder}/ledger.db"
    database = Database(url)
    seed_ledger(database, 400, days=40)
    database.close()
    env = {"GROKFLASK_ADMIN_TOKEN": ADMIN_TOKEN, "DATABASE_URL": url, "GROKFLASK_KEY_CACHE_S": "0"}
    server = start_gateway(folder, upstream_server, **env)
    yield server
    server.stop()
    assert "Traceback" not in server.log, server.log


def sign_in(visit: Visit) -> Page:
    page = visit.open("/admin/login")
    page.get_by_label("Admin token").fill(ADMIN_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Dashboard", exact=True)).to_be_visible()
    return page


def call(url: str, secret: str, **body: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    return requests.post(f"{url}/v1/chat/completions", json={**CHAT, **body}, headers=headers, timeout=60)


def make_key(url: str, name: str) -> str:
    reply = requests.post(f"{url}/admin/api/keys", json={"name": name}, headers=ADMIN, timeout=WAIT_S)
    assert reply.status_code == 201, reply.text
    secret: str = reply.json()["secret"]
    return secret


def hurry(page: Page) -> None:
    """Loads the overview anew, which now refreshes each section with each turn, once a second."""

    def serve(route: Route) -> None:
        reply = route.fetch()
        body = re.sub(r'data-every-s="\d+"', 'data-every-s="0"', reply.text())
        route.fulfill(response=reply, body=body)

    page.route(re.compile(r"/admin(\?.*)?$"), serve)
    page.reload()


def refresh(page: Page, names: Iterable[str]) -> None:
    """Returns when each section has been fetched and put in its place: its next turn comes after that."""
    left = dict.fromkeys(names, 2)
    while left:
        path = page.wait_for_event("requestfinished").url.partition("/admin/parts/")[2]
        name = path.partition("?")[0]
        if left.get(name):
            left[name] -= 1
            left = {each: times for each, times in left.items() if times}


def test_signing_in_and_out(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """By keyboard alone; a wrong token is said to be wrong, and signing out ends it."""
    window = visit(filled.url)
    window.expect_problem("401")
    page = window.open("/admin")
    expect(page.get_by_label("Admin token")).to_be_focused()
    page.keyboard.type("not the token")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the admin token.")
    window.check_accessibility()
    sign_in(window)
    [cookie] = page.context.cookies()
    assert (cookie.get("httpOnly"), cookie.get("sameSite"), cookie.get("path")) == (True, "Strict", "/admin")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Admin token")).to_be_visible()


def test_after_too_many_wrong_tokens(
    visit: Callable[..., Visit], make_gateway: Callable[..., GatewayServer]
) -> None:
    """The form says how long to wait with another guess; the right token opens the dashboard at once."""
    gateway = make_gateway(GROKFLASK_ADMIN_TOKEN=ADMIN_TOKEN)
    for _ in range(30):
        wrong = {"Authorization": "Bearer wrong-token-0123456789"}
        requests.get(f"{gateway.url}/admin/api/keys", headers=wrong, timeout=WAIT_S)
    window = visit(gateway.url)
    window.expect_problem("429")
    page = window.open("/admin")
    page.get_by_label("Admin token").fill("not the token")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"Try again in \d+ (s|minutes)"))
    window.check_accessibility()
    page.get_by_label("Admin token").fill(ADMIN_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Dashboard", exact=True)).to_be_visible()


def test_a_key_from_its_making_to_its_end(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """Made in a dialog, its secret shown once and good at once; edited, rotated, and revoked."""
    window = visit(filled.url)
    page = sign_in(window)
    page.get_by_role("link", name="New key").click()
    dialog = page.get_by_role("dialog", name="New key")
    expect(dialog.get_by_label("Name")).to_be_focused()
    dialog.get_by_label("Name").fill("browser-key")
    dialog.get_by_label("Budget per day").fill("2.50")
    dialog.get_by_role("button", name="Create the key").click()
    page.locator("#secret + [data-copy]").click()
    expect(page.locator("#secret + [data-copy]")).to_have_text("Copied")
    secret = page.evaluate("() => navigator.clipboard.readText()")
    assert page.locator("#secret").inner_text() == secret
    assert secret in page.locator("#curl").inner_text()
    assert call(filled.url, secret).status_code == 200
    page.get_by_role("link", name="Done").click()
    row = page.locator("#keys tr", has_text="browser-key")
    expect(row).to_contain_text("of $2.50")
    assert secret not in page.content()

    row.get_by_role("link", name="Edit the key").click()
    page.get_by_label("Models").fill("grok-3*")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    assert call(filled.url, secret).status_code == 403
    page.get_by_label("Models").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Models")).to_have_value("")

    page.get_by_label("The old secret").select_option("0s")
    page.get_by_role("button", name="Rotate").click()
    newer = page.locator("#secret").inner_text()
    assert [call(filled.url, each).status_code for each in (secret, newer)] == [403, 200]

    page.get_by_role("link", name="Done").click()
    page.get_by_role("link", name="Revoke the key browser-key").click()
    dialog = page.get_by_role("dialog", name="Revoke the key “browser-key”?")
    dialog.get_by_role("link", name="Keep it").click()
    expect(dialog).to_be_hidden()
    assert call(filled.url, newer).status_code == 200
    page.get_by_role("link", name="Revoke the key browser-key").click()
    dialog.get_by_role("button", name="Revoke browser-key").click()
    expect(page.get_by_role("status")).to_have_text("The key has been revoked.")
    assert call(filled.url, newer).status_code == 403


def watch_stream(url: str, secret: str, name: str) -> tuple[threading.Thread, list[str]]:
    """Opens a stream that upstream holds; what its client got is in the list once the thread has ended."""
    got: list[str] = []
    headers = {"Authorization": f"Bearer {secret}", "X-Request-ID": name}

    def read() -> None:
        body = {**CHAT, "stream": True, "user": HELD}
        reply = requests.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        got.append(reply.text)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, got


def end_stream(page: Page, name: str) -> None:
    page.get_by_role("link", name=f"End the stream {name}").click()
    dialog = page.get_by_role("dialog", name="End this stream?")
    expect(dialog).to_contain_text(name)
    dialog.get_by_role("button", name="End the stream").click()
    expect(page.get_by_role("status")).to_contain_text("has been ended")


def test_a_stream_is_seen_and_ended(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """It appears without a reload, with what it has sent, and its client is told that it was ended."""
    secret = make_key(filled.url, "streamer")
    page = sign_in(visit(filled.url))
    expect(page.locator("#streams")).to_contain_text("No stream is open")
    thread, got = watch_stream(filled.url, secret, "watched-1")
    row = page.locator("#streams tr", has_text="watched-1")
    expect(row).to_contain_text("streamer")
    end_stream(page, "watched-1")
    thread.join(60)
    assert "operator stopped this answer" in got[0]
    assert "[DONE]" not in got[0]


def test_filtering_and_exporting(visit: Callable[..., Visit], filled: GatewayServer, tmp_path: Path) -> None:
    """The filter's rows are on the page, and the file is the ledger's rows of the same filter."""
    page = sign_in(visit(filled.url, downloads=tmp_path))
    page.get_by_label("Key", exact=True).fill("alice")
    page.get_by_label("Outcome").select_option("complete")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_label("Key", exact=True)).to_have_value("alice")
    rows = page.locator("#exchanges tbody tr")
    expect(rows).to_have_count(25)
    assert set(rows.locator("[data-label=Key]").all_inner_texts()) == {"alice"}
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    download.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        exported = [line["id"] for line in csv.DictReader(file)]
    url = f"{filled.url}/admin/api/ledger?limit=1000&key=alice&outcome=complete"
    asked = [row["id"] for row in requests.get(url, headers=ADMIN, timeout=WAIT_S).json()["rows"]]
    assert exported == asked
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("link", name="Newest")).to_be_visible()
    assert page.locator("#exchanges tbody tr").first.get_attribute("data-id") == asked[25]
    page.get_by_role("link", name="Details").first.click()
    expect(page.get_by_role("dialog", name="Exchange")).to_contain_text(asked[25])
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Clear").click()
    expect(page.get_by_label("Key", exact=True)).to_have_value("")


def test_refreshing_disturbs_nobody(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """New rows come by themselves; what is typed, chosen, focused, selected, opened or scrolled to stays."""
    secret = make_key(filled.url, "refresher")
    window = visit(filled.url)
    page = sign_in(window)
    hurry(page)
    page.get_by_text("As a table").click()
    page.get_by_label("Outcome").select_option("lost")
    page.get_by_label("Request id").fill("half an i")
    page.get_by_label("Request id").press("ArrowLeft")
    page.get_by_label("Request id").focus()
    scrolled = page.evaluate("() => scrollY")
    assert call(filled.url, secret).status_code == 200
    refresh(page, ("spend", "keys", "exchanges"))
    expect(page.locator("#exchanges tbody tr").first).to_contain_text("refresher")
    expect(page.get_by_label("Request id")).to_be_focused()
    expect(page.get_by_label("Request id")).to_have_value("half an i")
    assert page.evaluate("() => document.activeElement.selectionStart") == 8
    expect(page.get_by_label("Outcome")).to_have_value("lost")
    expect(page.locator("#spend details")).to_have_attribute("open", "")
    assert page.evaluate("() => scrollY") >= scrolled
    expect(page.locator("[data-refresh-state]")).to_have_text("Refreshes by itself")

    page.get_by_role("link", name="New key").click()
    page.get_by_role("dialog").get_by_label("Streams at once").fill("3")
    refresh(page, ("keys",))
    expect(page.get_by_role("dialog").get_by_label("Streams at once")).to_be_focused()
    expect(page.get_by_role("dialog").get_by_label("Streams at once")).to_have_value("3")


def test_selected_text_stays_selected(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """Somebody who is about to copy an id does not lose it."""
    window = visit(filled.url)
    page = sign_in(window)
    hurry(page)
    select = """() => {
        const cell = document.querySelector("#exchanges tbody tr:nth-child(3) [data-label=Key]");
        getSelection().selectAllChildren(cell);
        return getSelection().toString();
    }"""
    selected = page.evaluate(select)
    assert selected
    refresh(page, ("exchanges",))
    assert page.evaluate("() => getSelection().toString()") == selected


def test_a_hidden_tab_rests(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """Nothing is fetched while nobody looks, and all of it once somebody does."""
    window = visit(filled.url)
    window.page.clock.install()
    page = sign_in(window)
    hide = "hidden => Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true})"
    page.evaluate(hide, True)
    asked: list[str] = []
    page.on("request", lambda request: "/parts/" in request.url and asked.append(request.url))
    for _ in range(60):
        page.clock.run_for(1_000)
    assert asked == []
    page.evaluate(hide, False)
    for _ in range(10):
        page.clock.run_for(1_000)
    expect(page.locator("[data-refresh-state]")).to_have_text("Refreshes by itself")
    assert asked


def test_it_says_when_it_cannot_refresh(visit: Callable[..., Visit], filled: GatewayServer) -> None:
    """The old figures stay with a word about it, and it goes on by itself; after a sign-out it says that."""
    window = visit(filled.url)
    window.expect_problem("Failed to load resource")
    page = sign_in(window)
    told = page.locator("[data-refresh-state]")
    page.route("**/admin/parts/**", lambda route: route.abort())
    expect(told).to_contain_text("Not refreshed since")
    expect(page.locator("#exchanges tbody tr").first).to_be_visible()
    page.unroute("**/admin/parts/**")
    expect(told).to_have_text("Refreshes by itself")
    page.context.clear_cookies()
    expect(told).to_contain_text("You have been signed out")


def test_without_scripts(browser: Browser, filled: GatewayServer) -> None:
    """Signing in, making, and revoking are plain forms and links."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    try:
        page.goto(f"{filled.url}/admin")
        page.fill("#token", ADMIN_TOKEN)
        page.click("form button.primary")
        page.click("text=New key")
        page.fill("#key-name", "plain")
        page.click("text=Create the key")
        secret = page.inner_text("#secret")
        assert call(filled.url, secret).status_code == 200
        assert not page.locator("[data-copy]").first.is_visible()
        page.click("text=Done")
        page.click('[aria-label="Revoke the key plain"]')
        page.click("button.danger")
        assert "The key has been revoked." in page.content()
        assert call(filled.url, secret).status_code == 403
        page.click("text=by model")
        assert "by=model" in page.url
    finally:
        context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_is_readable(
    visit: Callable[..., Visit], filled: GatewayServer, size: tuple[int, int], dark: bool
) -> None:
    """At both sizes and in both themes: nothing wider than the window, nothing that axe-core minds."""
    window = visit(filled.url, size, dark=dark)
    window.expect_problem("404")
    window.open("/admin/login")
    window.check_accessibility()
    page = sign_in(window)
    name = f"seen-{size[0]}-{dark}".lower()
    make_key(filled.url, name)
    row_id = page.locator("#exchanges tbody tr").first.get_attribute("data-id")
    page.get_by_text("As a table").click()
    window.check_accessibility()
    window.check_width()
    page.get_by_role("link", name="New key").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    window.check_accessibility()
    for path in (
        *("/keys/new", f"/keys/{name}", f"/keys/{name}/revoke", f"/exchanges/{row_id}", "/nothing"),
        *("?by=model&days=90", "?model=nothing"),
    ):
        window.open(f"/admin{path}")
        window.check_accessibility()
        window.check_width()
    window.open(f"/admin/keys/{name}")
    page.get_by_role("button", name="Rotate").click()
    expect(page.locator("#secret")).to_be_visible()
    window.check_accessibility()
    window.check_width()


def test_two_workers(
    visit: Callable[..., Visit],
    make_keyed: Callable[..., KeyedGateway],
    upstream: ScriptedUpstream,
    postgres_server: PostgresServer,
    redis_server: RedisServer,
) -> None:
    """Over PostgreSQL and Redis a session holds in both, and a stream of either is seen and ended."""

    def hold(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Once"))
        exchange.wait_until_left()

    upstream.handler = hold
    keyed = make_keyed(
        DATABASE_URL=postgres_server.make_database(), REDIS_URL=redis_server.url, WEB_CONCURRENCY="2"
    )
    window = visit(keyed.url)
    page = sign_in(window)
    expect(page.locator("#keys")).to_contain_text("No keys yet")
    window.check_accessibility()
    secret = make_key(keyed.url, "shared")
    streams = [watch_stream(keyed.url, secret, f"shared-{number}") for number in range(4)]
    for _ in range(6):  # whichever worker answers
        page.reload()
        expect(page.get_by_role("heading", name="Dashboard", exact=True)).to_be_visible()
    expect(page.locator("#streams tbody tr")).to_have_count(4)
    expect(page.locator("#stores")).to_contain_text("Redis")
    for number, (thread, got) in enumerate(streams):
        end_stream(page, f"shared-{number}")
        thread.join(60)
        assert "operator stopped this answer" in got[0]
