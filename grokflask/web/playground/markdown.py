"""A model's Markdown as safe HTML: no scripts, no styles, no pictures, no relative links.

CommonMark with tables and strikethrough; HTML in it is shown as text. The result is sanitised too, because it
goes into a page that holds a key.

A text may be long, or crafted to be slow. So rendering yields to other requests every few milliseconds (under
gevent nothing else runs in between), only a few texts are rendered at once, one of each caller, and one that
takes too long is refused; the page then shows it as plain text.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from grokflask.errors import ClientError, GatewayFullError
from grokflask.runtime import step_aside

SLICE_S = 0.005
"""How long others wait, if the parser yields often enough."""

WORK_S = 2.0
"""Time limit for one text, without the turns of others."""

STRETCH_CHARS = 16 * 1024
"""The longest stretch without a blank line, because the parser does not yield within a table or paragraph."""

STRETCH_BARS = 2_000
"""The most `|` in such a stretch, because each cell of a table costs as much as a paragraph."""

AT_ONCE = 4
WAIT_S = 5.0
"""How many texts are rendered at once, one of each caller, and how long another one waits."""

_BLANK = re.compile(r"\n[ \t]*\n")
_LANGUAGE = re.compile(r"language-[A-Za-z0-9_+#.-]{1,32}")
_ALIGNMENT = re.compile(r"text-align:(left|center|right)")

_TAGS = set(
    "p br hr h1 h2 h3 h4 h5 h6 blockquote ul ol li strong em s a code pre table thead tbody tr th td".split()
)


class TooSlowError(ClientError):
    """The Markdown takes too long to render."""

    status = 422
    code = "markdown_too_slow"
    default_message = "This Markdown takes too long to render. Read it as plain text."


class _Turns:
    """Yields to others while a text is rendered, and adds up the time that it takes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._worked_s = 0.0

    def take(self) -> None:
        """Called at every step. Raises TooSlowError."""
        took_s = self._clock() - self._since
        if took_s < SLICE_S:
            return
        self._worked_s += took_s
        if self._worked_s > WORK_S:
            raise TooSlowError
        step_aside()
        self._since = self._clock()


_turns: ContextVar[_Turns] = ContextVar("turns")


_busy: set[str] = set()  # whose texts are rendered
_ended = threading.Condition()


def render_markdown(text: str, clock: Callable[[], float] = time.thread_time, caller: str = "") -> str:
    """`text` of `caller` as safe HTML. Raises TooSlowError and GatewayFullError."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    stretches = _BLANK.split(text)
    if any(len(each) > STRETCH_CHARS or each.count("|") > STRETCH_BARS for each in stretches):
        raise TooSlowError
    with _ended:
        if not _ended.wait_for(lambda: caller not in _busy and len(_busy) < AT_ONCE, WAIT_S):
            raise GatewayFullError
        _busy.add(caller)
    turns = _Turns(clock)
    token = _turns.set(turns)
    try:
        environ: dict[str, object] = {}
        pieces = []
        for block in _split_blocks(_PARSER.parse(text, environ)):
            turns.take()
            pieces.append(_sanitise(_PARSER.renderer.render(block, _PARSER.options, environ)))
        return "".join(pieces)
    finally:
        _turns.reset(token)
        with _ended:
            _busy.remove(caller)
            _ended.notify_all()


def _split_blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each top-level block."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline"])

    def pause(*_state: object) -> bool:
        _turns.get().take()
        return False

    parser.block.ruler.before("table", "pause", pause)
    parser.inline.ruler.before("text", "pause", pause)
    parser.core.ruler.push("plain", _make_plain)
    return parser


def _make_plain(state: StateCore) -> None:
    """Replaces pictures by their URL, and a column's style, which pages do not allow, by an attribute."""
    for token in state.tokens:
        alignment = _ALIGNMENT.fullmatch(str(token.attrs.pop("style", "")))
        if alignment:
            token.attrs["align"] = alignment[1]
        for child in token.children or ():
            if child.type == "image":
                child.type, child.tag, child.nesting = "text", "", 0
                alt = child.content or "picture"
                child.content = f"{alt} ({child.attrs.get('src', '')})"


def _sanitise(html: str) -> str:
    return nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags={"script", "style"},
        attributes={
            "a": {"href", "title"},
            "code": {"class"},
            "ol": {"start"},
            "th": {"align"},
            "td": {"align"},
        },
        attribute_filter=lambda _tag, name, value: (
            value if name != "class" or _LANGUAGE.fullmatch(value) else None
        ),
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
    )


_PARSER = _make_parser()
