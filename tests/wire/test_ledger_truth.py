"""The ledger is true to the tick: a day of synthetic traffic, and what upstream says it charged for it.

Upstream is the sandbox, in this process, so that its journal can be read. Rows that are no estimates equal
its charges, one by one; where a call is read to its end (`GROKFLASK_ON_ABORT=drain`) that is all of them.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.processes import UPSTREAM_KEY, wait_for
from support.stores import KeyedGateway
from support.traffic import (
    PICTURE,
    Gates,
    Planned,
    Traffic,
    list_aborts,
    list_refused,
    list_told,
    list_untold,
    make_plan,
)

from grokflask.billing.bill import IMAGE_TOKENS
from grokflask.billing.money import TICKS_PER_USD
from grokflask.sandbox import Exchange, Sandbox
from grokflask.sandbox.models import CHAT_MODELS, cost_ticks
from grokflask.times import to_day

TOTAL = 260
AT_ONCE = 16
KEYS: dict[str, dict[str, Any]] = {
    "ann": {"budget_day": 1000, "budget_month": 5000},
    "bob": {"budget_month": 1000, "tokens_per_minute": 10**9},
    "cyd": {"budget_day": 2000, "streams": 1000},
    "dan": {},
}
REFUSED_KEYS: dict[str, dict[str, Any]] = {
    "broke": {"budget_day": 0},
    "narrow": {"models": ["grok-imagine-*"]},
}
SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_ticks", "bytes_out")
LINE_FIELDS = (
    *("key", "route", "model", "model_served", "outcome", "status", "code", "duration_ms", "bytes_out"),
    *("prompt_tokens", "completion_tokens", "reasoning_tokens", "total_tokens", "cost_ticks"),
    *("estimated", "upstream_request_id"),
)

CHATS = ("whole replies", "streams", "streams with silent reasoning")
SHAPED_TOKENS = 64
"""What the gateway adds to a body, as tokens: `stream_options`, the part around a picture."""

Row = dict[str, Any]


@dataclass
class Day:
    """What was planned, and what everybody wrote down about it."""

    gateway: KeyedGateway
    keys: dict[str, dict[str, str]]
    plan: list[Planned]
    rows: dict[str, Row]
    noted: dict[str, list[Exchange]]

    @property
    def pairs(self) -> list[tuple[Planned, Row, list[Exchange]]]:
        """Each exchange that went upstream, its row, and upstream's notes of it."""
        return [
            (each, self.rows[each.mark], self.noted[each.mark]) for each in self.plan if each.case.reaches
        ]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The emulator without pauses, with the one key that it takes."""
    with Sandbox(events_per_s=0, key=UPSTREAM_KEY) as running:
        yield running


@pytest.fixture
def live_through(
    make_keyed: Callable[..., KeyedGateway],
    stores: dict[str, str],
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Day]:
    """Runs a plan through a gateway over each pair of stores; returns when all is written down."""

    def run(plan: list[Planned], **env: str) -> Day:
        settings = {"XAI_API_BASE": sandbox.base_url, "GROKFLASK_HEARTBEAT_S": "0.3"}
        gateway = make_keyed(**stores, **settings, **env)
        keys = {name: gateway.make_key(name, **fields) for name, fields in (KEYS | REFUSED_KEYS).items()}
        drains = env["GROKFLASK_ON_ABORT"] == "drain"
        Traffic(gateway, keys, Gates(monkeypatch), drains=drains).run(plan, AT_ONCE)
        rows = gateway.wait_for_rows(sum(each.case.reaches for each in plan))
        marks = {each.mark for each in plan if each.case.reaches and each.case.route != "models"}
        wait_for(lambda: marks <= {_find_mark(noted) for noted in sandbox.journal}, "upstream's notes")
        noted: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in sandbox.journal.wait_until_idle():
            noted[_find_mark(exchange)].append(exchange)
        assert len({row["request_id"] for row in rows}) == len(rows)
        return Day(gateway, keys, plan, {row["request_id"]: row for row in rows}, noted)

    return run


def _find_mark(noted: Exchange) -> str:
    return (noted.user or "").rpartition(" ")[2]


def test_a_day_that_is_told_to_its_end(live_through: Callable[..., Day]) -> None:
    """With drain each row is what upstream charged, aborts included: row by row, by key, and in sum."""
    cases = list_told() + list_refused() + list_aborts(drains=True)
    plan = make_plan(cases, TOTAL, list(KEYS), seed=1)
    day = live_through(plan, GROKFLASK_ON_ABORT="drain", GROKFLASK_DRAINS="1000", GROKFLASK_DRAIN_S="60")
    check_books(day)
    for planned, row, noted in day.pairs:
        assert row["cost_ticks"] == sum(exchange.cost_ticks for exchange in noted), (planned, row, noted)
    charged: Counter[str] = Counter()
    for planned, _row, noted in day.pairs:
        charged[planned.key] += sum(exchange.cost_ticks for exchange in noted)
    assert sum_by_key(day) == charged
    assert (
        sum(charged.values()) == sum(each.cost_ticks for all_of in day.noted.values() for each in all_of) > 0
    )
    print(f"\n{len(day.rows)} rows, {sum(charged.values())} ticks, off by 0")


def test_a_day_with_all_that_goes_wrong(live_through: Callable[..., Day]) -> None:
    """Calls that are cut off are estimates and say so; all others are what upstream charged.

    An estimate has the prompt and the text by their bytes. So it is below the charge by what nobody saw of
    the answer, at the most.
    """
    cases = list_told() + list_refused() + list_untold() + list_aborts(drains=False)
    plan = make_plan(cases, TOTAL, list(KEYS), seed=2)
    timeouts = {"GROKFLASK_FIRST_EVENT_TIMEOUT_S": "12", "GROKFLASK_IDLE_TIMEOUT_S": "12"}
    day = live_through(plan, GROKFLASK_ON_ABORT="cancel", **timeouts)
    check_books(day)
    check_estimates(day)


def check_books(day: Day) -> None:
    """One row for each exchange that went upstream, as planned; sums, counters and log say the same."""
    check_who_is_there(day)
    faults = [fault for pair in day.pairs for fault in find_faults(*pair)]
    assert not faults, "\n\n".join([f"{len(faults)} faults", *faults])
    check_sums(day)
    check_counters(day)
    check_log(day)


def check_who_is_there(day: Day) -> None:
    """Rows, and upstream's notes, are of those that reached it and of nobody else."""
    assert set(day.rows) == {each.mark for each in day.plan if each.case.reaches}
    posted = {each.mark for each in day.plan if each.case.reaches and each.case.route != "models"}
    assert {mark for mark, noted in day.noted.items() if noted} == posted
    for planned, _row, noted in day.pairs:
        if planned.case.route == "models":
            assert not noted
        elif planned.case.fault == "drop-before-headers":
            assert 1 <= len(noted) <= 2  # a kept connection that closes without an answer is taken for stale
        else:
            assert len(noted) == 1, (planned, noted)


def find_faults(planned: Planned, row: Row, noted: list[Exchange]) -> list[str]:
    """Where the row is not the plan's, or has other figures than upstream's though it is no estimate."""
    case = planned.case
    charged = sum(exchange.cost_ticks for exchange in noted)
    same = {
        "key": row["key"] == planned.key,
        "route": row["route"] == case.route,
        "outcome": row["outcome"] in case.outcomes,
        "estimated": case.estimated is None or row["estimated"] == case.estimated,
        "charged": (charged > 0) == case.charged,
    }
    if noted and row["upstream_request_id"] is not None:
        same["upstream_request_id"] = row["upstream_request_id"] in [each.request_id for each in noted]
    if case.misstated:
        (exchange,) = noted
        same["cost_ticks"] = row["cost_ticks"] == exchange.usage["cost_in_usd_ticks"]
        same["total_tokens"] = row["total_tokens"] == exchange.usage["total_tokens"]
    elif case.exact or not row["estimated"]:
        same["cost_ticks"] = row["cost_ticks"] == charged
        if case.charged and case.route != "images":
            (exchange,) = noted
            same["prompt_tokens"] = row["prompt_tokens"] == exchange.prompt_tokens
            tokens = exchange.prompt_tokens + exchange.output_tokens
            same["total_tokens"] = row["total_tokens"] == tokens
    wrong = [name for name, holds in same.items() if not holds]
    return [f"{planned.mark} ({case.name}): {', '.join(wrong)}\n{row}\n{noted}"] if wrong else []


def sum_by_key(day: Day, name: str = "cost_ticks") -> Counter[str]:
    """The rows' sums."""
    sums: Counter[str] = Counter()
    for row in day.rows.values():
        sums[row["key"]] += row[name] or 0
    return sums


def check_sums(day: Day) -> None:
    """Nothing drifts, and the daily sums are the rows'."""
    assert day.gateway.run("usage", "check")["drift"] == []
    summary = {each["key"]: each for each in day.gateway.run("usage", "summary")}
    for name in SUMS:
        assert {key: each[name] for key, each in summary.items()} == dict(sum_by_key(day, name)), name
    exchanges = Counter(row["key"] for row in day.rows.values())
    assert {key: each["exchanges"] for key, each in summary.items()} == exchanges
    estimated: Counter[str] = Counter()
    for row in day.rows.values():
        estimated[row["key"]] += row["cost_ticks"] if row["estimated"] else 0
    assert {key: each["estimated_ticks"] for key, each in summary.items()} == dict(estimated)


def check_counters(day: Day) -> None:
    """What each key's holder sees as spent is the sum of its rows, and nothing is held any more."""
    for name, header in day.keys.items():
        today, usage = show_usage(day.gateway, header)
        rows = [row for row in day.rows.values() if row["key"] == name]
        day_ticks, month_ticks = (
            sum(row["cost_ticks"] for row in rows if row["started_at"].startswith(period))
            for period in (today, today[:7])
        )
        assert usage["spent"] == {"day_ticks": day_ticks, "month_ticks": month_ticks}, name
        fields = (KEYS | REFUSED_KEYS)[name]
        left = usage["remaining"]
        assert left["streams"] == fields.get("streams")
        if "budget_day" in fields:
            assert left["budget_day_ticks"] == fields["budget_day"] * TICKS_PER_USD - day_ticks
        if "budget_month" in fields:
            assert left["budget_month_ticks"] == fields["budget_month"] * TICKS_PER_USD - month_ticks


def show_usage(gateway: KeyedGateway, key: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """A UTC day, and what the key's holder sees on it."""
    while True:
        today = to_day(time.time())
        usage = gateway.show_usage(key)
        if to_day(time.time()) == today:
            return today, usage


def check_log(day: Day) -> None:
    """One line for each exchange, with the row's figures. What the gateway refused has a line and no row."""
    lines = defaultdict(list)
    for line in day.gateway.server.find_lines("msg=exchange"):
        words = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line))
        lines[words["request_id"]].append(words)
    assert set(lines) == {each.mark for each in day.plan}
    for planned in day.plan:
        (words,) = lines[planned.mark]
        if not planned.case.reaches:
            assert words["outcome"] == "refused"
            assert "cost_ticks" not in words
            continue
        row = day.rows[planned.mark]
        for name in LINE_FIELDS:
            value = row[name] or None if name == "estimated" else row[name]
            text = None if value is None else str(value).lower() if value is True else str(value)
            assert words.get(name, "").strip('"') == (text or ""), (name, words, row)


def check_estimates(day: Day) -> None:
    """Each estimate is what it is said to be, and so are they in sum."""
    booked: Counter[str] = Counter()
    charged: Counter[str] = Counter()
    for planned, row, noted in day.pairs:
        kind = name_kind(planned, row)
        booked[kind] += row["cost_ticks"]
        charged[kind] += sum(exchange.cost_ticks for exchange in noted)
        if kind in CHATS:
            check_guess(planned, row, noted)
    print(f"\n{len(day.rows)} rows")
    for kind, ticks in charged.items():
        print(f"{kind}: {booked[kind]} booked, {ticks} charged, factor {booked[kind] / ticks:.3f}")
    assert booked["exact"] == charged["exact"] > 0
    # The gateway prices grok-2-image at 7 cents, the sandbox at 2; all other prices of theirs are the same.
    assert 1 <= booked["images"] / charged["images"] <= 3.5
    # Prompts by their bytes count up to twice here (JSON around few words), a picture sevenfold; against that
    # stand answers that nobody saw: whole replies, silent reasoning. In sum it stays within a factor of two.
    chats = sum(booked[kind] for kind in CHATS) / sum(charged[kind] for kind in CHATS)
    assert 0.5 <= chats <= 2


def name_kind(planned: Planned, row: Row) -> str:
    """How far the row's cost is known."""
    if planned.case.misstated:
        return "misstated"
    if planned.case.exact or not row["estimated"]:
        return "exact"
    if planned.case.route == "images":
        return "images"
    if not planned.case.stream:
        return "whole replies"
    silent = CHAT_MODELS[row["model"]].thinking == "hidden"
    return "streams with silent reasoning" if silent else "streams"


def check_guess(planned: Planned, row: Row, noted: list[Exchange]) -> None:
    """The prompt by its bytes and the text by its events and bytes, at the price of the model asked for.

    The sandbox's tokens are words, so bytes count up to twice as many. It lacks, at the most, what was
    charged for output that nobody here saw, and for a second sending.
    """
    told = (planned, row, noted)
    served = CHAT_MODELS[row["model"]].served
    first, text_tokens, silent_tokens = noted[0], row["completion_tokens"], row["reasoning_tokens"] or 0
    output_tokens = text_tokens + silent_tokens
    assert row["cost_ticks"] == cost_ticks(served, row["prompt_tokens"], output_tokens), told
    assert row["total_tokens"] == row["prompt_tokens"] + output_tokens, told
    body = json.dumps(planned.body)
    pictures = body.count(PICTURE)
    most = (len(body) - pictures * len(PICTURE)) // 4 + pictures * IMAGE_TOKENS + SHAPED_TOKENS
    assert first.prompt_tokens <= row["prompt_tokens"] <= most, told
    if planned.case.gated:
        assert text_tokens >= first.events_sent, told
    assert text_tokens <= 2 * max(first.events_sent, first.output_tokens), told
    assert silent_tokens <= 60 * row["duration_ms"] / 1000, told
    unseen_tokens = max(0, first.output_tokens - output_tokens)
    lacking = cost_ticks(served, first.prompt_tokens, unseen_tokens) - cost_ticks(
        served, first.prompt_tokens, 0
    )
    assert row["cost_ticks"] + lacking >= first.cost_ticks, told
