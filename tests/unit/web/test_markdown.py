"""A model's Markdown as HTML: what is kept, what is made harmless, and what is given up."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import WAIT_S

from grokflask.errors import GatewayFullError
from grokflask.web.playground import markdown
from grokflask.web.playground.markdown import TooSlowError, render_markdown

ATTRIBUTES = {"href", "title", "target", "rel", "class", "start", "align"}
TAGS = markdown._TAGS

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>*{display:none}</style>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#x0A;script:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](data:image/svg+xml;base64,PHN2Zz4=)",
    "![x](https://elsewhere.example/pixel.png)",
    "![x](data:image/png;base64,iVBORw0KGgo=)",
    "![x](javascript:alert(1))",
    "<javascript:alert(1)>",
    '[x](https://a.example "t\\" onmouseover=alert(1) x=\\"")',
    "[a]: javascript:alert(1)\n\n[a]",
    '```"><script>alert(1)</script>\nx\n```',
    "```js onload=alert(1)\nx\n```",
    "<form action=/admin><input name=x></form>",
    "[rel](/admin/api/keys) [proto](//elsewhere.example)",
    "\0<scr\0ipt>alert(1)</scr\0ipt>",
    "<!-- --><base href=//elsewhere.example>",
    "|a|\n|:-:|\n|<b onclick=x>|",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
]


class Tags(HTMLParser):
    """The tags of a piece of HTML, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_harmless(html: str) -> None:
    """Only tags that are known, with attributes that are known, and links that leave in a new tab."""
    for tag, attributes in Tags(html).found:
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES
        if tag == "a":
            assert attributes["target"] == "_blank"
            assert set((attributes["rel"] or "").split()) == {"noopener", "noreferrer", "nofollow"}
        if "href" in attributes:
            assert re.match(r"(https?://|mailto:)", attributes["href"] or "")
        if "class" in attributes:
            assert re.fullmatch(r"language-[\w+#.-]{1,32}", attributes["class"] or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_is_harmless(text: str) -> None:
    """Whatever a model writes becomes known tags with known attributes, and nothing that runs or loads."""
    check_harmless(render_markdown(text))
    check_harmless(render_markdown(f"> - {text}\n\n{text}"))


@given(st.text(alphabet=st.sampled_from("<>&\"'`*_~[]()!|#-:=\\/ \n\tabjx0"), max_size=200))
def test_any_text_is_harmless(text: str) -> None:
    """The same of texts made of the signs that mean something in Markdown and HTML."""
    check_harmless(render_markdown(text))


def test_html_is_shown_as_text() -> None:
    """HTML in an answer is read as it stands, as answers about HTML need it."""
    assert render_markdown("Use `<b>` or <b>bold</b>.") == (
        "<p>Use <code>&lt;b&gt;</code> or &lt;b&gt;bold&lt;/b&gt;.</p>\n"
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** *b* ~~c~~", "<p><strong>a</strong> <em>b</em> <s>c</s></p>\n"),
        ("# a\n\n---", "<h1>a</h1>\n<hr>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("```python\nx < 1\n```", '<pre><code class="language-python">x &lt; 1\n</code></pre>\n'),
        ("```c++\n```", '<pre><code class="language-c++"></code></pre>\n'),
        (
            "|a|b|\n|:-|-:|\n|1|2|",
            '<table>\n<thead>\n<tr>\n<th align="left">a</th>\n<th align="right">b</th>\n</tr>\n</thead>\n'
            '<tbody>\n<tr>\n<td align="left">1</td>\n<td align="right">2</td>\n</tr>\n</tbody>\n</table>\n',
        ),
        ("![a cat](https://x.example/c.png)", "<p>a cat (https://x.example/c.png)</p>\n"),
        ("a\r\n\r\nb\rc", "<p>a</p>\n<p>b\nc</p>\n"),
        ("", ""),
    ],
)
def test_what_is_kept(text: str, html: str) -> None:
    """CommonMark with tables and strikethrough; pictures are named and not loaded."""
    assert render_markdown(text) == html


def test_a_link_leaves_in_a_new_tab() -> None:
    """And tells the other side nothing."""
    assert render_markdown("[x](https://a.example)") == (
        '<p><a href="https://a.example" target="_blank" rel="noopener noreferrer nofollow">x</a></p>\n'
    )


@pytest.mark.parametrize("sign", [">", "[", "![", "- ", "*", "_a", "<", "`", "&#", "|a", "~~a", "[a]("])
def test_endless_nesting_is_given_up_or_done(sign: str) -> None:
    """A text made to be slow is rendered, or given up when it has taken as many steps as were granted."""
    ticks = itertools.count()
    line = (sign * 20_000)[: markdown.STRETCH_BARS if "|" in sign else markdown.STRETCH_CHARS]
    text = "\n\n".join([line] * 3)
    try:
        check_harmless(render_markdown(text, clock=lambda: next(ticks) * markdown.SLICE_S))
    except TooSlowError:
        assert next(ticks) * markdown.SLICE_S >= markdown.WORK_S


def test_a_long_stretch_is_given_up_at_once() -> None:
    """Within a paragraph or table nobody else gets a turn, so there is a limit to one."""
    for text in ("a" * (markdown.STRETCH_CHARS + 1), "|a|\n|-|\n" + "|b|\n" * (markdown.STRETCH_BARS // 2)):
        with pytest.raises(TooSlowError):
            render_markdown(text)
    assert render_markdown("a\n \n" * markdown.STRETCH_CHARS, clock=lambda: 0.0)


def test_others_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long text is rendered, others run again and again."""
    turns: list[None] = []
    monkeypatch.setattr(markdown, "step_aside", lambda: turns.append(None))
    ticks = itertools.count()
    render_markdown("Some *text* here.\n\n" * 50, clock=lambda: next(ticks) * 0.003)
    assert len(turns) > 50


def make_blocking_clock(entered: threading.Semaphore, go: threading.Event) -> Callable[[], float]:
    """A clock that says when it is first looked at, and then lets its reader wait."""

    def read() -> float:
        if not go.is_set():
            entered.release()
            go.wait()
        return 0.0

    return read


def test_only_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More texts than there is room for wait, and are refused when it takes too long."""
    monkeypatch.setattr(markdown, "WAIT_S", 0.01)
    entered, go = threading.Semaphore(0), threading.Event()
    clock = make_blocking_clock(entered, go)
    threads = [
        threading.Thread(target=render_markdown, args=("a", clock, f"key:{number}"))
        for number in range(markdown.AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=WAIT_S)
    with pytest.raises(GatewayFullError):
        render_markdown("a")
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert render_markdown("a") == "<p>a</p>\n"


def test_one_caller_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's second text waits for its first, and keeps no other caller out."""
    entered, go = threading.Semaphore(0), threading.Event()
    clock = make_blocking_clock(entered, go)
    args = ("a", clock, "key:a")
    threads = [threading.Thread(target=render_markdown, args=args) for _ in range(2 * markdown.AT_ONCE)]
    for thread in threads:
        thread.start()
    assert entered.acquire(timeout=WAIT_S)
    monkeypatch.setattr(markdown, "WAIT_S", 0.01)
    assert render_markdown("a", caller="key:b") == "<p>a</p>\n"
    with pytest.raises(GatewayFullError):
        render_markdown("a", caller="key:a")
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
