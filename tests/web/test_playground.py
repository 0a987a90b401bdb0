"""The playground in a real browser, on the sandbox as a newcomer finds it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from support.browser import DESKTOP, PHONE, TABLET, Visit
from support.playground import PASTE, ask, drop_file, make_png, open_playground, paste_file, say, wait_for_end
from support.processes import ROOT, GatewayServer

DOCS = ROOT / "docs" / "playground.md"

AWKWARD = 'It\'s "quoted", $HOME, `ls`, \\n, 100 % and é 🎉\nin two lines; tell a story'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

Visits = Callable[..., Visit]


@pytest.fixture
def page(visit: Visits, sandbox_gateway: GatewayServer) -> Page:
    """The playground on the sandbox, on a desk."""
    return open_playground(visit(sandbox_gateway.url))


def read_requests(page: Page, path: str) -> list[dict[str, object]]:
    """From now on, the bodies that are sent to a path."""
    bodies: list[dict[str, object]] = []
    page.on("request", lambda each: bodies.append(each.post_data_json) if each.url.endswith(path) else None)
    return bodies


def test_a_newcomer_asks_twice(page: Page) -> None:
    """Without a key a suggestion is answered at once; the second question goes with all that was said."""
    bodies = read_requests(page, "/chat/completions")
    expect(page.get_by_text("These answers come from the sandbox.")).to_be_visible()
    expect(page.locator("#need-key")).to_be_hidden()
    page.get_by_role("button", name="Compare three sorting algorithms in a table").click()
    first = wait_for_end(page)
    expect(first.locator("table tbody tr")).to_have_count(3)
    expect(first.locator(".facts")).to_contain_text("tokens")
    expect(first.locator(".facts")).to_contain_text("first ")
    expect(first.locator(".facts")).to_contain_text("$0.0")
    expect(page.locator("#announcement")).to_have_text("Answer complete.")
    ask(page, "Tell me a story")
    assert [each["role"] for each in bodies[1]["messages"]] == ["user", "assistant", "user"]  # type: ignore[index,attr-defined]
    assert bodies[1]["stream_options"] == {"include_usage": True}
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_code_is_named_and_copied(page: Page) -> None:
    """A block of code tells its language and goes to the clipboard by one button; so does the answer."""
    turn = ask(page, "Write a Python function that checks a password")
    expect(turn.locator(".code-head")).to_contain_text("python")
    turn.get_by_role("button", name="Copy the code").click()
    expect(page.locator("#announcement")).to_have_text("Copied.")
    assert "def is_good" in page.evaluate("navigator.clipboard.readText()")
    turn.get_by_role("button", name="Copy the answer").click()
    expect(turn.get_by_role("button", name="Copy the answer")).to_have_text("Copied")
    assert "```python\n" in page.evaluate("navigator.clipboard.readText()")


def test_the_last_turn_is_changed(page: Page) -> None:
    """The last answer is made again, the last message goes back to be written anew, and all begins anew."""
    bodies = read_requests(page, "/chat/completions")
    ask(page, "Tell me a story about cats")
    ask(page, "Another one about dogs")
    assert page.get_by_role("button", name="Regenerate").count() == 1
    page.get_by_role("button", name="Regenerate").click()
    wait_for_end(page, 1)
    assert bodies[2] == bodies[1]
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Another one about dogs")
    assert page.locator(".turn").count() == 2
    page.get_by_label("Message", exact=True).press("Shift+Enter")
    page.get_by_label("Message", exact=True).press_sequentially("or birds")
    page.get_by_label("Message", exact=True).press("Enter")
    wait_for_end(page, 1)
    assert bodies[3]["messages"][-1]["content"] == "Another one about dogs\nor birds"  # type: ignore[index]
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    expect(page.locator("#welcome")).to_be_visible()


def test_pictures_are_looked_at(page: Page) -> None:
    """A picture is dropped, another pasted, one taken away; the answer comes whole and says so."""
    bodies = read_requests(page, "/chat/completions")
    drop_file(page, "blue.png", "image/png", make_png())
    paste_file(page, "second.png", "image/png", make_png(4, 4))
    expect(page.locator("#attached img")).to_have_count(2)
    page.get_by_role("button", name="Remove second.png").click()
    page.set_input_files(
        "#picture", {"name": "third.png", "mimeType": "image/png", "buffer": make_png(16, 2)}
    )
    expect(page.locator("#attached img")).to_have_count(2)
    turn = ask(page, "What is this?")
    expect(turn).to_contain_text("X-Stream-Fallback: vision")
    expect(turn.locator(".text")).to_contain_text("PNG")
    expect(page.locator(".turn.user img")).to_have_count(2)
    expect(page.locator("#attached img")).to_have_count(0)
    parts = bodies[0]["messages"][0]["content"]  # type: ignore[index]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    sent = parts[0]["image_url"]["url"]
    assert base64.b64decode(sent.removeprefix("data:image/png;base64,")) == make_png()


def test_pictures_that_are_added_at_once(page: Page) -> None:
    """Both are kept, though the second comes while the first one is still being read."""
    data = base64.b64encode(make_png()).decode()
    pasted = [["#message", name, "image/png", data] for name in ("one.png", "two.png")]
    page.evaluate(f"(each) => each.forEach({PASTE})", pasted)
    expect(page.locator("#attached img")).to_have_count(2)


def test_pictures_that_cannot_be_sent(page: Page) -> None:
    """A picture of another kind, and one that is too large, are refused with the reason."""
    drop_file(page, "a.gif", "image/gif", b"GIF89a")
    expect(page.locator("#picture-problem")).to_have_text(
        "a.gif is not a PNG or JPEG; the models accept no other formats."
    )
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(20 * 2**20 + 1)}
    page.set_input_files("#picture", large)
    expect(page.locator("#picture-problem")).to_contain_text("large.png has 20.0 MiB; the models accept")
    expect(page.locator("#attached img")).to_have_count(0)


def test_images_are_made(visit: Visits, sandbox_gateway: GatewayServer, tmp_path: Path) -> None:
    """Two images come as base64, are shown with what they cost, and can be saved."""
    page = open_playground(visit(sandbox_gateway.url, downloads=tmp_path))
    bodies = read_requests(page, "/images/generations")
    page.get_by_role("tab", name="Image").click()
    page.get_by_label("What should be in it?").fill("A lighthouse in the fog")
    page.get_by_label("How many").select_option("2")
    page.get_by_role("button", name="Make").click()
    pictures = page.get_by_role("img", name="A lighthouse in the fog")
    expect(pictures).to_have_count(2)
    assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    expect(page.locator(".made .facts")).to_contain_text("$0.0400")
    assert bodies[0] == {
        "model": "grok-imagine-image",
        "prompt": "A lighthouse in the fog",
        "n": 2,
        "response_format": "b64_json",
    }
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert download.value.suggested_filename.startswith("image-1.")
    assert download.value.path().read_bytes()[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")


def test_raw_events(page: Page) -> None:
    """Each event is listed as it came, with its time; the last is [DONE]; the next request starts anew."""
    page.get_by_role("tab", name="Raw events").click()
    expect(page.locator("#event-empty")).to_be_visible()
    page.get_by_role("tab", name="Raw events").press("ArrowRight")
    expect(page.get_by_role("tab", name="Chat")).to_be_focused()
    ask(page, "Tell me a story")
    page.get_by_role("tab", name="Raw events").click()
    lines = page.locator("#event-list li")
    expect(lines.last).to_contain_text("[DONE]")
    count = lines.count()
    assert json.loads(lines.first.locator("code").inner_text())["object"] == "chat.completion.chunk"
    expect(page.locator("#event-title")).to_have_text(f"Chat, grok-4.3: {count} events")
    page.get_by_role("tab", name="Chat").click()
    ask(page, "Write 2000 words, a story")
    page.get_by_role("tab", name="Raw events").click()
    expect(page.locator("#event-title")).to_contain_text("no longer kept")
    assert lines.count() == 1000


def test_reasoning_is_folded(page: Page) -> None:
    """What a model thinks aloud is there to be opened, with how long it took."""
    page.get_by_label("Model", exact=True).select_option("grok-4.7")
    page.get_by_label("Reasoning effort").select_option("low")
    bodies = read_requests(page, "/chat/completions")
    turn = ask(page, "What is wind?")
    assert bodies[0]["reasoning_effort"] == "low"
    expect(turn.locator(".thoughts")).to_be_hidden()
    turn.get_by_text("Reasoning (").click()
    expect(turn.locator(".thoughts")).to_contain_text("The question is about")
    expect(turn.locator(".facts")).to_contain_text("reasoning")


def test_another_model_answers(page: Page) -> None:
    """When another model has answered than the one asked for, that is told."""
    page.evaluate("location.search = '?model=grok-4'")
    page.wait_for_selector("html[data-ready]")
    expect(ask(page, "Tell me a story")).to_contain_text("You requested grok-4; grok-4.3 answered.")


@pytest.mark.parametrize("address", re.findall(r"`(/\?model=sandbox-\S+)`", DOCS.read_text(encoding="utf-8")))
def test_endings_of_the_docs(visit: Visits, sandbox_gateway: GatewayServer, address: str) -> None:
    """The addresses in docs/playground.md show endings that went wrong."""
    window = visit(sandbox_gateway.url)
    window.expect_problem("Failed to load resource")
    page = open_playground(window, address)
    say(page, "Tell me a story")
    expect(page.locator(".turn.answer .failure")).to_contain_text("Request id play-")


def test_settings_go_along(page: Page) -> None:
    """The system prompt, the numbers and the tools are sent; a call's result goes back to the model."""
    bodies = read_requests(page, "/chat/completions")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("50")
    page.get_by_text("Tools", exact=True).click()
    page.get_by_label("Tools (JSON)").fill(json.dumps(TOOLS))
    say(page, "How is the weather in Oslo?")
    turn = page.locator(".turn.answer").first
    expect(turn).to_contain_text("tool call: get_weather")
    sent = bodies[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}  # type: ignore[index]
    assert (sent["temperature"], sent["max_tokens"], sent["tools"]) == (0.5, 50, TOOLS)
    turn.get_by_label("Result of get_weather").fill("Rain, 4 °C")
    turn.get_by_role("button", name="Send the results").click()
    expect(wait_for_end(page, 1)).to_contain_text("Rain, 4 °C")
    page.reload()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")


@pytest.mark.parametrize(
    ("label", "value", "problem"),
    [
        ("Temperature", "3", "Enter a number from 0 to 2, or leave this empty."),
        ("Max tokens", "0", "Enter a number from 1 to 10000000, or leave this empty."),
        ("Tools (JSON)", "{", "This is not valid JSON"),
        ("Tools (JSON)", "{}", "Enter a list of tools, in [ ]."),
        ("Tools (JSON)", "[1]", 'Tool 1 has no "type".'),
        ("Tools (JSON)", '[{"type": "function"}]', 'Tool 1 has no "function" with a "name".'),
    ],
)
def test_settings_are_checked(page: Page, label: str, value: str, problem: str) -> None:
    """What cannot be sent is told beside its field, which gets the focus; nothing is sent."""
    bodies = read_requests(page, "/chat/completions")
    page.locator("details summary", has_text="Tools").click()
    page.get_by_label(label).fill(value)
    say(page, "Tell me a story")
    expect(page.locator(".problem:visible")).to_contain_text(problem)
    expect(page.get_by_label(label)).to_be_focused()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Tell me a story")
    assert bodies == []


def run(program: str, text: str) -> str:
    """What a program prints that is read by a shell, or by Python."""
    environ = {**os.environ, "KEY": "any"}
    done = subprocess.run(
        [program, "-"] if program == sys.executable else [program, "-s"],
        env=environ,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_snippets(page: Page) -> tuple[str, str]:
    """The curl and Python lines of the last turn, by their buttons."""
    page.get_by_role("button", name="This turn as code").last.click()
    texts = []
    for name in ("curl", "python"):
        page.get_by_role("button", name=f"Copy the {name} lines").click()
        expect(page.locator(f"#snippet-{name}-head button")).to_have_text("Copied")
        texts.append(page.evaluate("navigator.clipboard.readText()"))
    page.get_by_role("button", name="Close").click()
    return texts[0], texts[1]


def read_stream(printed: str) -> str:
    """The words in a stream that curl has printed."""
    events = [line[6:] for line in printed.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event)["choices"] for event in events]
    return "".join(choices[0]["delta"].get("content", "") for choices in chunks if choices)


def test_snippets_do_the_same(page: Page) -> None:
    """The lines run as they were copied, whatever signs are in a message, and bring the same answer."""
    page.get_by_label("System prompt").fill("Don't say $(no) or `yes` or \\.")
    turn = ask(page, AWKWARD)
    turn.get_by_role("button", name="Copy the answer").click()
    expect(turn.get_by_role("button", name="Copy the answer")).to_have_text("Copied")
    answer = page.evaluate("navigator.clipboard.readText()")
    curl, python = copy_snippets(page)
    assert "Bearer $KEY" in curl
    assert read_stream(run("bash", curl)) == answer
    assert run(sys.executable, python).rstrip("\n") == answer.rstrip("\n")


def test_snippets_with_a_picture(page: Page) -> None:
    """A picture goes along, in lines that a shell still takes, and is not shown in full."""
    noise = make_png() + os.urandom(120_000)  # what follows a PNG's end is no part of it
    drop_file(page, "blue.png", "image/png", noise)
    ask(page, "What's this?")
    curl, python = copy_snippets(page)
    assert len(page.locator("#snippet-curl").text_content() or "") < 2000
    text = json.loads(run("bash", curl))["choices"][0]["message"]["content"]
    assert run(sys.executable, python).rstrip("\n") == text


def test_snippets_of_images(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for images, which end up as files."""
    page.get_by_role("tab", name="Image").click()
    page.get_by_label("What should be in it?").fill("A cat's hat")
    page.get_by_label("Shape").select_option("16:9")
    page.get_by_role("button", name="Make").click()
    curl, python = copy_snippets(page)
    assert json.loads(run("bash", curl))["data"][0]["b64_json"]
    monkeypatch.chdir(tmp_path)
    name = run(sys.executable, python).strip()
    assert (tmp_path / name).stat().st_size > 100


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, TABLET, DESKTOP], ids=["phone", "tablet", "desktop"])
def test_every_size_and_theme(
    visit: Visits, sandbox_gateway: GatewayServer, size: tuple[int, int], dark: bool
) -> None:
    """Empty, full, with its settings and with code, nobody scrolls sideways and nobody is left out."""
    window = visit(sandbox_gateway.url, size, dark=dark)
    page = open_playground(window)
    check(window)
    ask(page, "Write a Python function that checks a password")
    ask(page, "Compare sorting algorithms in a table")
    check(window)
    page.get_by_role("button", name="This turn as code").last.click()
    check(window)
    page.get_by_role("button", name="Close").click()
    page.get_by_role("tab", name="Raw events").click()
    check(window)
    page.get_by_role("tab", name="Image").click()
    check(window)
    if size != DESKTOP:
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
        check(window)
        page.get_by_role("button", name="Done").click()
    if size == PHONE:
        check_targets(page)


def check(window: Visit) -> None:
    """As the foundation wants every page."""
    window.check_width()
    window.check_accessibility()


def check_targets(page: Page) -> None:
    """What a finger has to hit is 40 px high or more."""
    page.get_by_role("tab", name="Chat").click()
    low = page.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, textarea, nav a")]
          .filter((each) => each.offsetHeight && each.offsetHeight < 40)
          .map((each) => `${each.offsetHeight} px: ${each.outerHTML.slice(0, 120)}`)"""
    )
    assert low == []


def test_the_reader_is_not_dragged_along(page: Page) -> None:
    """The text follows while its reader is at the end; elsewhere a button leads back there."""
    page.set_viewport_size({"width": 900, "height": 500})
    ask(page, "Write 600 words, a story")
    turns = page.locator("#turns")
    far = "pane => pane.scrollHeight - pane.scrollTop - pane.clientHeight"
    assert turns.evaluate(far) < 48
    expect(page.locator("#jump")).to_be_hidden()
    turns.evaluate("pane => pane.scrollTo(0, 0)")
    expect(page.locator("#jump")).to_be_visible()
    page.locator("#jump").click()
    expect(page.locator("#jump")).to_be_hidden()
    assert turns.evaluate(far) < 48


def test_by_keyboard_alone(page: Page) -> None:
    """Tab goes through the page in the order in which it is read, and the focus can be seen everywhere."""
    seen = []
    for _ in range(18):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert seen[0] == "Skip to the content"
    places = [
        seen.index(name) for name in ("model", "tab-chat", "new", "message", "attach", "send", "system")
    ]
    assert places == sorted(places)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
