"""Figures for people, which the server and the browser write alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page
from support.browser import Visit
from support.processes import GatewayServer

from grokflask.web.formats import (
    show_ago,
    show_bytes,
    show_count,
    show_duration,
    show_money,
    show_utc,
)

NOW = 1_800_000_000.0

MONEY = {
    None: "\u2013",
    0: "$0",
    1: "<$0.0001",
    1_000_000: "$0.0001",
    123_456_789: "$0.0123",
    9_999_999_999: "$1.0000",
    10_000_000_000: "$1.00",
    -34_500_000_000: "-$3.45",
    12_345_678_900_000_000: "$1,234,567.89",
}
COUNTS = {None: "\u2013", 0: "0", 999: "999", 1000: "1\u2009000", 1234567: "1\u2009234\u2009567"}
DURATIONS = {
    None: "\u2013",
    0: "0 ms",
    340: "340 ms",
    999: "999 ms",
    2100: "2.1 s",
    59_949: "59.9 s",
    59_960: "1 min 0 s",
    200_000: "3 min 20 s",
    7_500_000: "2 h 5 min",
}


@pytest.fixture
def page(visit: Callable[..., Visit], sandbox_gateway: GatewayServer) -> Page:
    return visit(sandbox_gateway.url).open("/health")


@pytest.mark.parametrize(
    ("name", "figures", "show"),
    [
        ("showMoney", MONEY, show_money),
        ("showCount", COUNTS, show_count),
        ("showDuration", DURATIONS, show_duration),
    ],
)
def test_the_server_and_the_browser_agree(
    page: Page, name: str, figures: dict[int | None, str], show: Callable[[int | None], str]
) -> None:
    """Both write each figure as the table has it."""
    assert {figure: show(figure) for figure in figures} == figures
    script = "async ([name, figures]) => figures.map((await import('/static/format.js'))[name])"
    assert page.evaluate(script, [name, list(figures)]) == list(figures.values())


@pytest.mark.parametrize(
    ("passed_s", "shown"),
    [
        (0, "just now"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (86400 * 3, "3 d ago"),
        (-3600 * 5, "in 5 h"),
    ],
)
def test_times_are_relative(passed_s: float, shown: str) -> None:
    """A moment is told as the time since, in the largest unit that it fills."""
    assert show_ago(NOW - passed_s, NOW) == shown


def test_other_figures() -> None:
    """Bytes, an exact moment, and a moment that has not been."""
    assert [show_bytes(size) for size in (None, 812, 3_400, 1_200_000, 2 * 10**9)] == [
        "\u2013",
        "812 B",
        "3.4 kB",
        "1.2 MB",
        "2.0 GB",
    ]
    assert show_utc(NOW) == "2027-01-15 08:00:00 UTC"
    assert (show_ago(None), show_utc(None)) == ("never", "")
