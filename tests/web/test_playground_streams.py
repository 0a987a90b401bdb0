"""The playground before an upstream that does exactly what a test says: order, endings, errors, keys."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, Route, expect
from support.browser import PHONE, Visit
from support.playground import ask, enter_key, open_playground, say, serve, wait_for_end
from support.processes import CLIENT_KEY, GatewayServer, wait_for
from support.scripted import USAGE, WAIT_S, Exchange, ScriptedUpstream, chat_chunk

CHAT = "**/api/v1/chat/completions"

HOSTILE = """\
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2">

[link](javascript:window.hacked=3) ![pixel](https://elsewhere.example/p.png) [data](data:text/html,<script>)

<iframe srcdoc="<script>parent.hacked = 4</script>"></iframe><style>body { display: none }</style>

```"><script>window.hacked = 5</script>
code
```

| a |
| - |
| <svg onload="window.hacked = 6"> |

[real](https://elsewhere.example/)

The end."""

Visits = Callable[..., Visit]


@pytest.fixture
def window(visit: Visits, gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> Visit:
    """A window on a gateway that asks for keys."""
    shared_upstream.handler = serve()
    return visit(gateway.url)


@pytest.fixture
def page(window: Visit) -> Page:
    """The playground with alice's key."""
    return open_playground(window, key=CLIENT_KEY)


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk with these fields in its delta."""
    return chat_chunk("", choices=[{"index": 0, "delta": fields}])


def finish(exchange: Exchange) -> None:
    """The proper end of a stream."""
    exchange.event(chat_chunk("", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    exchange.event(chat_chunk("", choices=[], usage=USAGE))
    exchange.event("[DONE]")
    exchange.end()


def test_tokens_appear_one_by_one(page: Page, shared_upstream: ScriptedUpstream) -> None:
    """Upstream says each word only when the page has shown the one before: nothing waits for anything."""
    words = ["Once", " upon", " a", " time.", "\n\n", "The end"]
    seen = [threading.Event() for _ in words]

    def stream(exchange: Exchange) -> None:
        exchange.start()
        for word, shown in zip(words, seen, strict=True):
            exchange.event(chat_chunk(word))
            assert shown.wait(WAIT_S)
        finish(exchange)

    shared_upstream.handler = serve(stream)
    say(page, "Tell me a story")
    text = page.locator(".turn.answer .text")
    so_far = ""
    for word, shown in zip(words, seen, strict=True):
        so_far += word
        expect(text).to_contain_text(so_far.strip())
        expect(page.locator("#announcement")).not_to_have_text("Answer complete.")
        shown.set()
    turn = wait_for_end(page)
    assert turn.locator(".markdown p").all_inner_texts() == ["Once upon a time.", "The end"]
    facts = turn.locator(".facts")
    for part in ("2 tokens", "/s", "first ", "<$0.0001"):
        expect(facts).to_contain_text(part)


def test_what_is_complete_is_rendered_while_more_comes(page: Page, shared_upstream: ScriptedUpstream) -> None:
    """A paragraph is rendered when the next has begun; a list and a block of code only when they are over."""
    more = [threading.Event() for _ in range(2)]

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("**bold**\n\n- one\n\n- two\n"))
        assert more[0].wait(WAIT_S)
        exchange.event(chat_chunk("\nAfter.\n\n```js\nlet a\n\nlet b\n"))
        assert more[1].wait(WAIT_S)
        exchange.event(chat_chunk("```\n"))
        finish(exchange)

    shared_upstream.handler = serve(stream)
    say(page, "Lists")
    text = page.locator(".turn.answer .text")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator(".tail")).to_contain_text("- two")
    more[0].set()
    expect(text.locator("li")).to_have_count(2)
    expect(text.locator(".tail")).to_contain_text("let b")
    assert text.locator("pre").count() == 0
    more[1].set()
    expect(wait_for_end(page).locator("pre")).to_have_text("let a\n\nlet b\n")


def find_outcome(gateway: GatewayServer, request_id: str) -> str | None:
    """What the ledger says of a request of alice's."""
    headers = {"Authorization": f"Bearer {CLIENT_KEY}"}
    rows = requests.get(f"{gateway.url}/api/v1/usage", headers=headers, timeout=WAIT_S).json()["recent"]
    return next((row["outcome"] for row in rows if row["request_id"] == request_id), None)


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop(page: Page, gateway: GatewayServer, shared_upstream: ScriptedUpstream, by: str) -> None:
    """Stopping hangs up on upstream; what had come stays, is marked, and goes along with the next turn."""
    left = threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Half an answer"))
        if exchange.wait_until_left():
            left.set()

    shared_upstream.handler = serve(stream)
    with page.expect_request(CHAT) as asked:
        say(page, "Tell me a story")
    turn = page.locator(".turn.answer")
    expect(turn.locator(".text")).to_contain_text("Half an answer")
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert left.wait(WAIT_S)
    expect(turn).to_have_attribute("data-state", "stopped")
    expect(turn).to_contain_text("Half an answer")
    expect(turn).to_contain_text("Stopped.")
    expect(page.locator("#announcement")).to_have_text("Answer stopped.")
    wait_for(lambda: find_outcome(gateway, asked.value.headers["x-request-id"]) == "client_abort", "its row")
    shared_upstream.handler = serve()
    ask(page, "Go on")
    said = [each["content"] for each in shared_upstream.exchanges[-1].document["messages"]]
    assert said == ["Tell me a story", "Half an answer", "Go on"]


def test_reasoning_comes_apart(page: Page, shared_upstream: ScriptedUpstream) -> None:
    """Thoughts come before the answer, folded and never part of it; their time is told when it begins."""
    seen = threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(delta(reasoning_content="Let me see."))
        assert seen.wait(WAIT_S)
        exchange.event(delta(content="42"))
        finish(exchange)

    shared_upstream.handler = serve(stream)
    say(page, "What is it?")
    turn = page.locator(".turn.answer")
    turn.get_by_text("Reasoning …").click()
    expect(turn.locator(".thoughts")).to_have_text("Let me see.")
    seen.set()
    expect(wait_for_end(page).locator(".text")).to_have_text("42")
    expect(turn.locator("summary")).to_contain_text("Reasoning (")


def test_hostile_markdown_does_nothing(page: Page, shared_upstream: ScriptedUpstream) -> None:
    """Whatever a model writes runs, loads and hides nothing, while it comes and afterwards."""

    def stream(exchange: Exchange) -> None:
        exchange.start()
        for start in range(0, len(HOSTILE), 7):
            exchange.event(chat_chunk(HOSTILE[start : start + 7]))
        finish(exchange)

    shared_upstream.handler = serve(stream)
    turn = ask(page, "<img src=x onerror='window.hacked = 7'>")
    assert page.evaluate("window.hacked") is None
    assert turn.locator(".text").locator("script, img, iframe, style, svg").count() == 0
    assert page.locator(".turn.user img").count() == 0
    links = turn.locator(".text a[href]")
    assert links.evaluate_all("all => all.map((each) => [each.href, each.target, each.rel])") == [
        ["https://elsewhere.example/", "_blank", "noopener noreferrer nofollow"]
    ]
    expect(turn).to_contain_text("The end.")


def test_plain_text_stays_when_nothing_renders(
    page: Page, window: Visit, shared_upstream: ScriptedUpstream
) -> None:
    """Without the renderer an answer is read as it was written, and the page asks no more than it must."""
    window.expect_problem("503")
    calls: list[str] = []

    def refuse(route: Route) -> None:
        calls.append(route.request.post_data or "")
        route.fulfill(status=503, body="{}")

    page.route("**/playground/render", refuse)

    def stream(exchange: Exchange) -> None:
        exchange.start()
        for _ in range(5):
            exchange.event(chat_chunk("Some **bold** text.\n\n"))
        finish(exchange)

    shared_upstream.handler = serve(stream)
    say(page, "Tell me a story")
    turn = page.locator(".turn.answer")
    expect(turn).to_have_attribute("data-state", "complete")
    expect(turn.locator(".tail")).to_contain_text("Some **bold** text.")
    assert len(calls) <= 2


def reply(status: int, code: str, message: str, *headers: str) -> Callable[[Exchange], None]:
    """An upstream that refuses."""
    return lambda exchange: exchange.reply({"code": code, "error": message}, status, *headers)


def break_off(exchange: Exchange) -> None:
    exchange.start()
    exchange.event(chat_chunk("Half"))
    exchange.event({"code": "internal", "error": "it broke"})
    exchange.end()


def end_early(exchange: Exchange) -> None:
    exchange.start()
    exchange.event(chat_chunk("Half"))
    exchange.end()


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (reply(403, "forbidden", "no such right"), ["This is not allowed (403).", "no such right"]),
        (
            reply(429, "rate-limited", "slow down", "Retry-After: 7"),
            ["Too many requests (429).", "slow down", "Wait 7.0 s."],
        ),
        (reply(503, "unavailable", "overloaded"), ["The service failed (503).", "overloaded", "Retry in a"]),
        (reply(400, "bad", "no such field"), ["The request was refused (400).", "no such field"]),
        (break_off, ["Half", "The answer broke off.", "it broke", "The text so far is kept above"]),
        (end_early, ["Half", "The answer broke off.", "The text so far is kept above"]),
    ],
    ids=["403", "429", "503", "400", "event", "truncated"],
)
def test_errors_in_words(
    page: Page,
    window: Visit,
    shared_upstream: ScriptedUpstream,
    handler: Callable[[Exchange], None],
    words: list[str],
) -> None:
    """Each says what happened, what to do and which id to quote; a retry then brings the answer."""
    window.expect_problem("Failed to load resource")
    shared_upstream.handler = serve(handler)
    say(page, "Tell me a story")
    turn = page.locator(".turn.answer")
    expect(turn).to_have_attribute("data-state", "failed")
    for each in words:
        expect(turn).to_contain_text(each)
    expect(turn.locator(".failure code")).to_contain_text("play-")
    expect(page.locator("#announcement")).to_have_text("The answer failed.")
    window.check_accessibility()
    shared_upstream.handler = serve()
    turn.get_by_role("button", name="Retry").click()
    expect(wait_for_end(page).locator(".text")).to_have_text("Once upon")
    assert page.locator(".turn").count() == 2
    assert shared_upstream.exchanges[-1].document["messages"] == [
        {"role": "user", "content": "Tell me a story"}
    ]


def test_no_network(page: Page, window: Visit) -> None:
    """When no answer comes at all there is an id to quote all the same."""
    window.expect_problem("ERR_INTERNET_DISCONNECTED")
    page.context.set_offline(True)
    say(page, "Tell me a story")
    turn = page.locator(".turn.answer")
    expect(turn).to_contain_text("The gateway did not answer.")
    expect(turn.locator(".failure code")).to_contain_text("play-")
    page.context.set_offline(False)
    turn.get_by_role("button", name="Retry").click()
    wait_for_end(page)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('data: {"choices":[{"delta":{"content":"Half"}}]}\n\n', "The answer was cut off."),
        ("data: <html>\n\n", "The answer could not be read."),
    ],
    ids=["cut", "garbage"],
)
def test_what_proxies_do(page: Page, body: str, words: str) -> None:
    """A stream that ends without its mark, or that is none, is no complete answer."""
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    say(page, "Tell me a story")
    turn = page.locator(".turn.answer")
    expect(turn).to_have_attribute("data-state", "failed")
    expect(turn).to_contain_text(words)


def test_a_key_is_needed(window: Visit) -> None:
    """Without a key the page says where to get one, and sends nothing; a wrong one is told."""
    page = open_playground(window)
    expect(page.locator("#need-key")).to_contain_text("flask --app wsgi keys create NAME")
    say(page, "Tell me a story")
    expect(page.locator("#key")).to_be_focused()
    assert page.locator(".turn").count() == 0
    window.expect_problem("401")
    enter_key(page, "wrong-secret-key")
    expect(page.locator("#load-problem")).to_contain_text("The key is missing or wrong (401).")
    window.check_accessibility()
    page.get_by_role("button", name="Forget").click()
    enter_key(page, CLIENT_KEY)
    expect(page.locator("#load-problem")).to_be_empty()
    expect(page.locator("#usage-name")).to_have_text("Usage of alice")
    page.get_by_label("Message", exact=True).press("Enter")
    wait_for_end(page)


def test_what_is_left(page: Page) -> None:
    """Budgets and limits are told in words and money, and those that a key has not are left out."""
    none = dict.fromkeys(("tokens_per_minute", "streams", "budget_month"))
    left = dict.fromkeys(("tokens_per_minute", "streams", "budget_month_ticks"))
    figures = {
        "key": "alice",
        "limits": {"requests": "100/hour", "budget_day": "0.50", **none},
        "remaining": {"requests": 98, "budget_day_ticks": 4_200_000_000, **left},
        "spent": {"day_ticks": 800_000_000, "month_ticks": 800_000_000},
        "recent": [],
    }
    page.route("**/api/v1/usage", lambda route: route.fulfill(json=figures))
    ask(page, "Tell me a story")
    expect(page.locator("#usage dt").first).to_have_text("Left today")
    assert page.locator("#usage > div").all_inner_texts() == [
        "Left today\n$0.4200 of $0.5000",
        "Spent today\n$0.0800",
        "Requests left\n98",
        "Requests allowed\n100/hour",
    ]


def test_the_key_stays_in_its_tab(page: Page, gateway: GatewayServer) -> None:
    """It is shown as dots, survives a reload, is in no other storage, and a new tab does not know it."""
    expect(page.locator("#key-mask")).to_have_text("●●●●●●●● " + CLIENT_KEY[-4:])
    assert CLIENT_KEY not in page.content()
    assert page.evaluate("JSON.stringify(localStorage)").count(CLIENT_KEY) == 0
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("sessionStorage.getItem('grokflask-key')") == CLIENT_KEY
    page.reload()
    page.wait_for_load_state("networkidle")
    expect(page.locator("#key-mask")).to_be_visible()
    other = page.context.new_page()
    other.goto(gateway.url)
    expect(other.locator("#need-key")).to_be_visible()
    assert other.evaluate("sessionStorage.length") == 0
    page.get_by_role("button", name="Forget").click()
    assert page.evaluate("sessionStorage.getItem('grokflask-key')") is None


def test_a_key_on_a_phone(visit: Visits, gateway: GatewayServer, shared_upstream: ScriptedUpstream) -> None:
    """There the key is entered in the sheet, which leaves by Escape."""
    shared_upstream.handler = serve()
    window = visit(gateway.url, PHONE)
    page = open_playground(window)
    page.get_by_role("button", name="Enter a key").click()
    expect(page.locator("#key")).to_be_focused()
    enter_key(page, CLIENT_KEY)
    window.check_accessibility()
    page.keyboard.press("Escape")
    ask(page, "Tell me a story")
    window.check_width()


def test_a_new_conversation_while_one_runs(page: Page, shared_upstream: ScriptedUpstream) -> None:
    """The old answer is hung up on, and the new question is answered in its own conversation."""
    left = threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event(chat_chunk("Old"))
        if exchange.wait_until_left():
            left.set()

    shared_upstream.handler = serve(stream)
    say(page, "First")
    expect(page.locator(".turn.answer .text")).to_contain_text("Old")
    page.get_by_role("button", name="New conversation").click()
    shared_upstream.handler = serve()
    ask(page, "Second")
    assert left.wait(WAIT_S)
    assert page.locator(".turn").count() == 2
    expect(page.get_by_role("button", name="Send")).to_be_visible()
