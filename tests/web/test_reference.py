"""/docs in a browser: Swagger UI under the pages' own policy, and "try it" where keys are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Locator, Page, expect
from support.browser import DESKTOP, PHONE, Visit
from support.processes import CLIENT_KEY, GatewayServer

from grokflask.web.reference.document import build_document

OPERATIONS = sum(len(methods) for methods in build_document("0")["paths"].values())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    """The gateway on its sandbox, with a key for alice."""
    env = {"GROKFLASK_SANDBOX_EVENTS_PER_S": "0", "GROKFLASK_AUTH": "keys"}
    folder = tmp_path_factory.mktemp("docs")
    gateway = GatewayServer(folder, {**env, "GROKFLASK_KEYS": f"alice:{CLIENT_KEY}"})
    yield gateway
    gateway.stop()
    assert "Traceback" not in gateway.log, gateway.log


def authorize(page: Page) -> None:
    """Pastes alice's key."""
    page.get_by_role("button", name="Authorize").first.click()
    box = page.locator(".auth-container", has_text="clientKey")
    box.get_by_role("textbox").fill(CLIENT_KEY)
    box.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()


def unfold(page: Page, id: str) -> Locator:
    """The block of an operation, opened."""
    block = page.locator(f"[id$='-{id}']")
    block.locator(".opblock-summary-control").click()
    return block


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_reference_shows_all_operations(
    visit: Callable[..., Visit], server: GatewayServer, dark: bool
) -> None:
    """The page loads quietly, from here alone, and lists what there is."""
    window = visit(server.url, DESKTOP, dark=dark)
    page = window.open("/docs/")
    expect(page.locator(".opblock")).to_have_count(OPERATIONS)
    expect(page.get_by_role("heading", name="grokflask")).to_be_visible()
    unfold(page, "post_responses")
    expect(page.get_by_role("button", name="Execute")).to_be_visible()
    # A link stands in a button: Swagger UI's own doing, and nothing that a style can mend.
    window.check_accessibility("nested-interactive")


def test_an_address_chooses_no_other_document(visit: Callable[..., Visit], server: GatewayServer) -> None:
    """Whoever follows a link to the reference sees this gateway's, and asks no other host."""
    page = visit(server.url).open("/docs/?url=https://example.invalid/openapi.json&configUrl=/x.json")
    expect(page.locator(".opblock")).to_have_count(OPERATIONS)


def test_a_phone_can_show_it(visit: Callable[..., Visit], server: GatewayServer) -> None:
    """Nothing is wider than the window."""
    window = visit(server.url, PHONE)
    page = window.open("/docs/")
    expect(page.locator(".opblock").first).to_be_visible()
    window.check_width()


def test_models_can_be_tried(visit: Callable[..., Visit], server: GatewayServer) -> None:
    """Without a key an operation is a 401; with the pasted one it answers, and nothing is stored."""
    window = visit(server.url)
    window.expect_problem("401")
    page = window.open("/docs/")
    block = unfold(page, "get_models")
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("401")
    authorize(page)
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    expect(block.locator(".live-responses-table")).to_contain_text("grok-4.3")
    assert CLIENT_KEY not in page.evaluate("() => JSON.stringify({...localStorage, ...sessionStorage})")


def test_a_stream_can_be_tried(visit: Callable[..., Visit], server: GatewayServer) -> None:
    """The example that streams comes back as events, to their end."""
    page = visit(server.url).open("/docs/")
    authorize(page)
    block = unfold(page, "post_chat_completions")
    block.get_by_label("Examples").or_(block.locator(".examples-select select")).first.select_option("stream")
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer).to_contain_text("[DONE]")
    expect(answer).to_contain_text("text/event-stream")
