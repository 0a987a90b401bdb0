"""A day of traffic: seeded exchanges of all kinds through a real gateway, in front of the sandbox.

Each exchange carries a mark, in its `X-Request-ID` and in its body's `user`, by which the ledger's row, the
log's line and the sandbox's note of it are found. Where a client is to leave in a phase, upstream holds still
in that phase until the client has gone. Nothing depends on who is faster, but for cases that allow either
outcome.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from grokflask.sandbox.answers import Style
from grokflask.sandbox.faults import BROKEN_AFTER_EVENTS, FAULTS, Fault, send_at_once
from grokflask.sandbox.models import CHAT_MODELS, IMAGE_TICKS, LONG_PROMPT_TOKENS
from grokflask.sandbox.pictures import draw_named
from grokflask.sandbox.steps import Event, Pause, Step
from support.scripted import WAIT_S
from support.stores import KeyedGateway

PATHS = {
    "chat": "/api/v1/chat/completions",
    "images": "/api/v1/images/generate",
    "vision": "/api/v1/vision/analyze",
    "models": "/api/v1/models",
}
WAYS = ("close", "reset", "half-close")
ABORT = frozenset(("client_abort",))
COMPLETE = frozenset(("complete",))
TRUNCATED = frozenset(("truncated",))
FAILED = frozenset(("upstream_error",))
PICTURE = "data:image/png;base64," + base64.b64encode(draw_named("405060-64x64") or b"").decode()
WORDS = [
    "tell",
    "me",
    "about",
    "lighthouses",
    "whales",
    "harbours",
    "and",
    "the",
    "keepers",
    "of",
    "old",
    "ferries",
    "who",
    "never",
    "slept",
]


class Gates:
    """Phases in which upstream holds still. A gate's number is the seconds in its fault's name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached: defaultdict[int, threading.Event] = defaultdict(threading.Event)
        self.opened: defaultdict[int, threading.Event] = defaultdict(threading.Event)
        for name, fault in self._make_faults().items():
            patch.setitem(FAULTS, name, replace(fault, timed=True))

    def hold(self, number: float) -> Iterator[Pause]:
        """Silence, until the gate is opened or the connection has ended."""
        self.reached[int(number)].set()
        while not self.opened[int(number)].is_set():
            yield Pause(0.01)

    def _make_faults(self) -> dict[str, Fault]:
        def hold_at(place: int | str) -> Any:
            def alter(events: Iterator[Event], number: float) -> Iterator[Step]:
                for count, event in enumerate(events):
                    if count == place or (event.done and place == "done"):
                        yield from self.hold(number)
                        # All that is left comes in one piece: whoever loses a piece loses the usage.
                        yield from send_at_once(itertools.chain([event], events), 0)
                        return
                    yield event
                yield from self.hold(number)

            return alter

        middle = hold_at(BROKEN_AFTER_EVENTS)
        return {
            "gate-headers": Fault(before_headers=self.hold),
            "gate-first": Fault(alter=hold_at(0), alters_replies=True),
            "gate-middle": Fault(alter=middle, alters_replies=True),
            "gate-usage": Fault(alter=middle, style=Style(usage="every")),
            "gate-before-done": Fault(alter=hold_at("done")),
            "gate-after-done": Fault(alter=hold_at("end")),
        }


@dataclass(frozen=True)
class Case:
    """One kind of exchange, and what the ledger must say of it.

    Attributes:
        outcomes: those that its row may have; more than one where that is a race.
        estimated: of the row; None where that is a race.
        exact: the row's cost is upstream's charge, estimated or not.
        misstated: upstream states another usage than it charges; the row has the one that was stated.
        fault: of the sandbox, by name; a gate's holds until the client has gone.
        leave: a way to go; "" stays to the end.
        charged: upstream did work for it.
        reaches: the gateway sent it upstream.
    """

    name: str
    outcomes: frozenset[str]
    route: str = "chat"
    stream: bool = True
    fault: str = ""
    leave: str = ""
    estimated: bool | None = False
    exact: bool = True
    misstated: bool = False
    charged: bool = True
    reaches: bool = True
    key: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    weight: int = 1

    @property
    def gated(self) -> bool:
        """Upstream holds still in it."""
        return self.fault.startswith("gate-")


ODD = "crlf cr no-space bom comments multiline other-fields burst unicode gzip hidden-reasoning"
ODD += " documented-nulls"
TOOLS = {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]}
REFUSALS = (
    "wrong-key old-codes no-credits no-credits-429 moderation rate-limit rate-limit-retry-after error-500"
)
REFUSALS += " error-503 error-html error-no-code openai-error json-on-200 leaky-error"


def list_told() -> list[Case]:
    """Upstream says what they cost, in whatever form."""
    cases = [
        Case("stream", COMPLETE, weight=12),
        Case("whole reply", COMPLETE, stream=False, weight=6),
        Case("usage asked for", COMPLETE, fields={"stream_options": {"include_usage": True}}, weight=3),
        Case("a few tokens", COMPLETE, fields={"max_tokens": 7}, weight=3),
        Case("long prompt", COMPLETE, fields={"prompt": "word " * (LONG_PROMPT_TOKENS + 9)}),
        Case("just below a long prompt", COMPLETE, fields={"prompt": "word " * (LONG_PROMPT_TOKENS - 5)}),
        Case("pictures", COMPLETE, "images", stream=False, weight=3),
        Case("picture shown", COMPLETE, "vision", stream=False, weight=3),
        Case("picture in a chat", COMPLETE, stream=False, fields={"picture": True}, weight=2),
        Case("picture in a stream", COMPLETE, fields={"picture": True}, weight=2),
        Case("tool", COMPLETE, fields=TOOLS),
        Case("two tools", COMPLETE, fault="two-tools", fields=TOOLS),
        Case("split tools", COMPLETE, fault="split-tools", fields=TOOLS),
        Case("empty finish", COMPLETE, fault="finish-empty", fields=TOOLS),
        Case("byte by byte", COMPLETE, fault="bytewise", fields={"max_tokens": 9}),
        Case("big event", COMPLETE, fault="big-event"),
        Case("linger", COMPLETE, fault="linger-0.3"),
        Case("no done", TRUNCATED, fault="no-done"),
        Case("strict content", COMPLETE, fault="strict-content"),
        # Tokens without a cost: the price is the gateway's own, and so marked.
        Case("usage on every chunk", COMPLETE, fault="usage-every-chunk", estimated=True, weight=2),
        Case("list of models", COMPLETE, "models", stream=False, charged=False),
    ]
    cases += [Case(name, COMPLETE, fault=name) for name in ODD.split()]
    for slow in ("slow-headers-0.2", "slow-first-event-0.2", "stall-0.2"):
        cases += [
            Case(slow, COMPLETE, fault=slow),
            Case(f"{slow}, whole", COMPLETE, stream=False, fault=slow),
        ]
    return cases


def list_refused() -> list[Case]:
    """What costs nothing: upstream refuses them, or the gateway, which then has no row of them."""
    cases = [
        Case(name, FAILED, stream=stream, fault=name, charged=False)
        for name in REFUSALS.split()
        for stream in (True, False)
    ]
    refused = frozenset(("refused",))
    return [
        *cases,
        Case("picture refused", FAILED, "images", stream=False, fault="no-credits", charged=False),
        Case("unknown model", FAILED, fields={"model": "grok-0"}, charged=False),
        Case("no budget", refused, key="broke", charged=False, reaches=False, weight=2),
        Case("not this model", refused, key="narrow", charged=False, reaches=False),
        Case("no messages", refused, fields={"messages": []}, charged=False, reaches=False),
    ]


def list_untold() -> list[Case]:
    """Upstream fails before it says what it charges, or never says: estimates."""
    guessed: dict[str, Any] = {"estimated": True, "exact": False}
    cases = [Case("drop before headers", FAILED, fault="drop-before-headers", **guessed)]
    cases += [
        Case("drop before headers, whole", FAILED, stream=False, fault="drop-before-headers", **guessed)
    ]
    for fault in ("drop-rst", "drop-fin", "drop-mid-event"):
        cases += [Case(fault, TRUNCATED, fault=fault, **guessed)]
        cases += [Case(f"{fault}, whole", TRUNCATED, stream=False, fault=fault, **guessed)]
    cases += [Case("truncated", TRUNCATED, fault="truncated", **guessed)]
    for fault in ("error-mid-stream", "error-mid-stream-openai", "error-event", "forged"):
        cases += [Case(fault, FAILED, fault=fault, **guessed)]
    cases += [Case("usage-none", COMPLETE, fault="usage-none", **guessed)]
    cases += [Case("usage-zero", COMPLETE, fault="usage-zero", misstated=True)]
    silent = frozenset(("timeout",))
    for phase in ("headers", "first", "middle"):
        cases += [Case(f"silent: {phase}", silent, fault=f"gate-{phase}", **guessed)]
        cases += [Case(f"silent: {phase}, whole", silent, stream=False, fault=f"gate-{phase}", **guessed)]
    return cases


def list_aborts(drains: bool) -> list[Case]:
    """Clients that leave, in every phase and way. `drains`: the gateway reads on for the usage then."""
    cases = []
    for way in WAYS:
        # Who closes and lets upstream go on at once may be too late to be seen leaving; who half-closes sees
        # that the gateway has seen it.
        outcomes = ABORT if way == "half-close" or not drains else ABORT | COMPLETE
        guess: dict[str, Any] = {"leave": way, "estimated": not drains, "exact": drains}
        for phase in ("headers", "first", "middle"):
            cases.append(Case(f"{way}: {phase}", outcomes, fault=f"gate-{phase}", **guess))
            cases.append(Case(f"{way}: {phase}, whole", ABORT, stream=False, fault=f"gate-{phase}", **guess))
        for route in ("vision", "images"):
            cases.append(Case(f"{way}: {route}", ABORT, route, False, "gate-headers", **guess))
        usage = {"stream_options": {"include_usage": True}}
        cases += [
            Case(f"{way}: running usage", outcomes, fault="gate-usage", leave=way, estimated=True),
            Case(f"{way}: before done", outcomes, fault="gate-before-done", leave=way, fields=usage),
            Case(f"{way}: after done", COMPLETE, fault="gate-after-done", leave=way),
        ]
        race = {**guess, "estimated": None if not drains else False}
        cases.append(Case(f"{way}: in a burst", ABORT | COMPLETE, weight=2, **race))
        cases.append(Case(f"{way}: on its way", ABORT | COMPLETE, fault="stall-0.1", weight=2, **race))
    return cases


@dataclass(frozen=True)
class Planned:
    """One exchange of the day."""

    number: int
    case: Case
    key: str
    body: dict[str, Any] | None

    @property
    def mark(self) -> str:
        """By which it is known everywhere."""
        return f"day-{self.number:04}"


def make_plan(cases: list[Case], total: int, keys: list[str], seed: int) -> list[Planned]:
    """Every case at least once, and `total` in all."""
    dice = random.Random(seed)
    assert total >= len(cases)
    chosen = cases + dice.choices(cases, weights=[case.weight for case in cases], k=total - len(cases))
    dice.shuffle(chosen)
    chosen.sort(key=lambda case: not case.name.startswith("silent"))  # the longest first
    return [
        Planned(number, case, case.key or dice.choice(keys), _make_body(case, number, dice))
        for number, case in enumerate(chosen)
    ]


def _make_body(case: Case, number: int, dice: random.Random) -> dict[str, Any] | None:
    if case.route == "models":
        return None
    mark = f"day-{number:04}"
    ticket = f"-{number}" if case.gated else ""
    body: dict[str, Any] = {"user": f"sandbox-{case.fault}{ticket} {mark}" if case.fault else mark}
    fields = dict(case.fields)
    text = fields.pop("prompt", None) or " ".join(dice.choices(WORDS, k=dice.randint(3, 150)))
    if case.route == "images":
        body |= {"model": dice.choice(list(IMAGE_TICKS)), "prompt": text, "n": dice.randint(1, 3)}
        return body | fields
    body["model"] = dice.choice(list(CHAT_MODELS))
    if case.route == "vision":
        return body | {"image": {"url": PICTURE}, "prompt": text} | fields
    content: Any = text
    if fields.pop("picture", False):
        content = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": text}]
    history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello yourself"}]
    messages = [*(history if dice.random() < 0.3 else []), {"role": "user", "content": content}]
    return body | {"messages": messages, "stream": case.stream} | fields


class Traffic:
    """Clients. Every one behaves as its case says; what it sees is not looked at, other tests do that."""

    def __init__(
        self, gateway: KeyedGateway, keys: dict[str, dict[str, str]], gates: Gates, *, drains: bool
    ) -> None:
        self._address = ("127.0.0.1", gateway.server.port)
        self._keys = keys
        self._gates = gates
        self._drains = drains

    def run(self, plan: list[Planned], at_once: int) -> None:
        """All of `plan`."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(self._run_one, plan))

    def _run_one(self, planned: Planned) -> None:
        case = planned.case
        with socket.create_connection(self._address, WAIT_S) as sock:
            sock.sendall(self._build(planned))
            if not case.leave:
                _read_until(sock, None)
                return
            if case.gated:
                assert self._gates.reached[planned.number].wait(WAIT_S), f"{planned} did not get there"
            _read_until(sock, _tell_phase(case))
            if case.leave == "half-close":
                sock.shutdown(socket.SHUT_WR)
                _read_until(sock, None)  # the gateway hangs up when it has seen it
            elif case.leave == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._drains:  # else upstream stands still until the gateway hangs up
            self._gates.opened[planned.number].set()

    def _build(self, planned: Planned) -> bytes:
        body = b"" if planned.body is None else json.dumps(planned.body).encode()
        lines = [
            f"{'GET' if planned.body is None else 'POST'} {PATHS[planned.case.route]} HTTP/1.1",
            "Host: x",
            f"Authorization: {self._keys[planned.key]['Authorization']}",
            "Content-Type: application/json",
            f"X-Request-ID: {planned.mark}",
            "Connection: close",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _tell_phase(case: Case) -> tuple[bytes, int]:
    """What a client has seen when it is where its case wants it, and how often."""
    if not case.stream or case.fault == "gate-headers":
        return b"", 0
    return {
        "gate-first": (b": keep-alive", 1),
        "gate-middle": (b"data: ", BROKEN_AFTER_EVENTS),
        "gate-usage": (b"data: ", BROKEN_AFTER_EVENTS),
        "gate-before-done": (b'"cost_in_usd_ticks"', 1),
        "gate-after-done": (b"data: [DONE]", 1),
    }.get(case.fault, (b"data: ", 1))


def _read_until(sock: socket.socket, wanted: tuple[bytes, int] | None) -> None:
    """Reads until something was seen so often; with None to the end."""
    got = b""
    while wanted is None or got.count(wanted[0]) < wanted[1]:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return
        if not data:
            return
        got = (got + data) if wanted else b""
