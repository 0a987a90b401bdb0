"""The playground as its reader uses it, and pictures to show to it."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from support.browser import Visit
from support.scripted import Exchange, Handler, answer_chat

MODELS = {"object": "list", "data": [{"id": name, "object": "model"} for name in ("grok-4.3", "grok-4.7")]}

DROP = """([target, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  const options = {bubbles: true, cancelable: true};
  const element = document.querySelector(target);
  element.dispatchEvent(new DragEvent("dragover", {dataTransfer: transfer, ...options}));
  element.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, ...options}));
}"""

PASTE = """([target, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  const options = {clipboardData: transfer, bubbles: true, cancelable: true};
  document.querySelector(target).dispatchEvent(new ClipboardEvent("paste", options));
}"""


def open_playground(visit: Visit, path: str = "/", key: str = "") -> Page:
    """The page, when it has what it asks for at the start; with a key pasted in if one is given."""
    page = visit.open(path)
    page.wait_for_selector("html[data-ready]")
    if key:
        enter_key(page, key)
    page.wait_for_load_state("networkidle")
    return page


def enter_key(page: Page, key: str) -> None:
    """Types a key in, as a reader does."""
    page.locator("#key").fill(key)
    page.locator("#key").press("Enter")
    expect(page.locator("#key-mask")).to_be_visible()


def say(page: Page, text: str) -> None:
    """Sends a message with the keyboard."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def ask(page: Page, text: str) -> Locator:
    """Sends a message; its answer when that is over and drawn."""
    count = page.locator(".turn.answer").count()
    say(page, text)
    return wait_for_end(page, count)


def wait_for_end(page: Page, number: int = 0) -> Locator:
    """The answer of this number, over and drawn."""
    turn = page.locator(".turn.answer").nth(number)
    expect(turn).to_have_attribute("data-state", "complete")
    expect(turn.locator(".tail")).to_have_text("")
    return turn


def serve(chat: Handler = answer_chat) -> Callable[[Exchange], None]:
    """A handler that also has a list of models, which the page asks for."""

    def handle(exchange: Exchange) -> None:
        if exchange.path.endswith("/models"):
            exchange.reply(MODELS)
        else:
            chat(exchange)

    return handle


def make_png(width: int = 8, height: int = 8) -> bytes:
    """A picture in one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x4f\x46\xe5" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def drop_file(page: Page, name: str, kind: str, data: bytes) -> None:
    """Drops a file on the conversation."""
    page.evaluate(DROP, ["#panel-chat", name, kind, base64.b64encode(data).decode()])


def paste_file(page: Page, name: str, kind: str, data: bytes) -> None:
    """Pastes a file into the message."""
    page.evaluate(PASTE, ["#message", name, kind, base64.b64encode(data).decode()])
