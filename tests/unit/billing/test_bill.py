"""What a request may cost, and what it is booked with when it has ended in whatever way."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from grokflask.billing.bill import (
    FREE,
    IMAGE_TOKENS,
    Estimate,
    count_output,
    count_prompt,
    estimate_chat,
    estimate_images,
    make_bill,
)
from grokflask.billing.prices import DEAREST, DEAREST_IMAGE_TICKS, find_price, price_images, price_tokens
from grokflask.config import Settings
from grokflask.errors import (
    ForeignAnswerError,
    GrokflaskError,
    IdleTimeoutError,
    NoAnswerError,
    Outcome,
    ShuttingDownError,
    StreamBrokenError,
    UpstreamConnectError,
    UpstreamStatusError,
)
from grokflask.protocol.usage import Settlement, Usage
from grokflask.sandbox.models import CHAT_MODELS, IMAGE_TICKS, PRICES, cost_ticks
from grokflask.shaping.scan import scan

CHAT = Estimate("tokens", "grok-4.3", 1000, 500, 1000 * 12_500, 1000 * 12_500 + 500 * 25_000)


def test_prices_against_a_recorded_reply() -> None:
    """xAI's own figure for a recorded chat: 12 tokens in, 11 of them cached, 291 out."""
    assert price_tokens("grok-3-mini", 12, 291, 11) == 1_466_250
    assert price_tokens("grok-3-mini-fast", 291, 26 + 196, 290) == 1_330_500


@pytest.mark.parametrize("asked", CHAT_MODELS)
@pytest.mark.parametrize("prompt_tokens", [0, 1, 199_999, 200_000, 1_000_000])
def test_prices_agree_with_the_sandbox(asked: str, prompt_tokens: int) -> None:
    """Two tables written apart say the same, by the name asked for and by the one that serves."""
    served = CHAT_MODELS[asked].served
    expected = cost_ticks(served, prompt_tokens, 77, prompt_tokens // 3)
    assert price_tokens(asked, prompt_tokens, 77, prompt_tokens // 3) == expected
    assert price_tokens(served, prompt_tokens, 77, prompt_tokens // 3) == expected


def test_models_that_are_not_in_the_table() -> None:
    """An unknown model is taken for the dearest, and never for a known one whose name it only resembles."""
    assert find_price("grok-5") is DEAREST
    assert find_price("grok-4") == find_price("grok-4.3")
    assert find_price("grok-40") is DEAREST
    dearest = max(price.output_ticks * price.long_factor for price in PRICES.values())
    assert dearest <= DEAREST.output_ticks * DEAREST.long_factor
    assert price_images("dall-e", 2) == 2 * DEAREST_IMAGE_TICKS >= 2 * max(IMAGE_TICKS.values())
    assert price_images("grok-imagine-image", 3) == 3 * 200_000_000
    assert price_images("grok-imagine-image-quality", 1) == 500_000_000


def test_the_long_context_rate() -> None:
    """From 200,000 tokens on each token of the request costs twice, the output too."""
    below, above = price_tokens("grok-4.7", 199_999, 10), price_tokens("grok-4.7", 200_000, 10)
    assert below == 199_999 * 20_000 + 10 * 60_000
    assert above == 2 * (200_000 * 20_000 + 10 * 60_000)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"", 0),
        (b"abcd", 1),
        (b"abcde", 2),
        ("漢字漢字".encode(), 6),
        ("abcd漢字".encode(), 1 + 3),
        (b'{"url":"https://example.com/a.png"}', 9),
    ],
)
def test_counting_a_prompt(body: bytes, tokens: int) -> None:
    """Four ASCII bytes are a token, and two of any others."""
    assert count_prompt(body) == tokens


def count(body: bytes) -> int:
    found = scan(body, Settings())
    return count_prompt(body, found.pictures, found.picture_bytes)


def test_images_count_by_the_piece() -> None:
    """Megabytes of base64 are an image's tokens, not a token for each four of them; a URL is an image too."""

    def ask(*urls: str) -> bytes:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()

    small, large = (ask("data:image/png;base64," + "A" * size) for size in (100, 10_000_000))
    assert count(small) == count(large)
    assert IMAGE_TOKENS < count(large) < IMAGE_TOKENS + 50
    assert count(ask("https://a/1.png", "https://a/2.png")) // IMAGE_TOKENS == 2
    assert count(ask("https://a/1.png", "data:image/png;base64,AAAA")) // IMAGE_TOKENS == 2
    text = json.dumps({"messages": [{"role": "user", "content": 'write "image_url" in JSON'}]}).encode()
    assert count(text) < 50
    assert count(large.replace(b"/", b"\\/").replace(b'"url": ', b'"url" :')) < IMAGE_TOKENS + 50
    assert count(large.replace(b'{"url": ', b"").replace(b'"}}', b'"}')) < IMAGE_TOKENS + 50


@pytest.mark.parametrize(
    "opening",
    [
        "an image;base64,",
        "data:image/png;base64,",
        '"url":"data:image/png;base64,',
        '{"type":"image_url","image_url":{"url":"data:image/png;base64,',
    ],
)
def test_a_text_does_not_pass_for_an_image(opening: str) -> None:
    """A long text costs what it costs, whatever stands at its beginning: limits would not hold otherwise."""
    body = json.dumps({"messages": [{"role": "user", "content": opening + "word " * 100_000}]}).encode()
    assert count(body) >= 125_000


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        (Usage(prompt_tokens=12, completion_tokens=1, reasoning_tokens=290, total_tokens=303), 291),
        (Usage(prompt_tokens=12, completion_tokens=1, reasoning_tokens=290), 291),
        (Usage(prompt_tokens=12, completion_tokens=291, reasoning_tokens=290, total_tokens=303), 291),
        (Usage(prompt_tokens=12, completion_tokens=5, total_tokens=0), 5),
        (Usage(), 0),
    ],
)
def test_output_tokens(usage: Usage, output: int) -> None:
    """Reasoning is counted once, whether upstream counts it inside the completion or outside."""
    assert count_output(usage) == output


def test_estimates() -> None:
    """A chat is priced by its model and length, images by the piece."""
    body = b"x" * 800_000
    assert estimate_chat("grok-4.3", body, 100) == Estimate(
        "tokens",
        "grok-4.3",
        200_000,
        100,
        2 * 200_000 * 12_500,
        2 * (200_000 * 12_500 + 100 * 25_000),
        50_000,
    )
    images = estimate_images("grok-imagine-image", 4)
    assert (images.tokens, images.ticks, images.prompt_ticks) == (0, 800_000_000, 800_000_000)


def test_upstreams_own_figures_count() -> None:
    """A cost that upstream reports is used as it is, even zero, and is not an estimate."""
    usage = Usage(10, 0, 5, 2, 17, cost_ticks=0)
    bill = make_bill(CHAT, Settlement(Outcome.COMPLETE, usage=usage, usage_final=True), reached=True)
    assert (bill.usage, bill.estimated, bill.ticks, bill.tokens) == (usage, False, 0, 17)


def test_a_usage_of_nothing_but_zeros_tells_nothing() -> None:
    """A chat has a prompt, so tokens of zero are no figures: it is estimated as if none had come.

    A cost of zero that is told at the end is a figure.
    """
    zeros = Usage(0, 0, 0, 0, 0, cost_ticks=0)
    told = Settlement(Outcome.COMPLETE, usage=zeros, usage_final=True, events_seen=5)
    assert (make_bill(CHAT, told, reached=True).ticks, make_bill(CHAT, told, reached=True).estimated) == (
        0,
        False,
    )
    running = Settlement(Outcome.CLIENT_ABORT, usage=zeros, events_seen=5)
    for settled in (running, replace(told, usage=replace(zeros, cost_ticks=None))):
        assert make_bill(CHAT, settled, reached=True) == make_bill(
            CHAT, replace(settled, usage=None), reached=True
        )
        assert make_bill(CHAT, settled, reached=True).estimated
    # A cost of nothing is a figure where tokens come with it, and for images, which have no tokens.
    images = estimate_images("grok-imagine-image", 1)
    free = Settlement(Outcome.COMPLETE, usage=Usage(cost_ticks=0), usage_final=True)
    assert make_bill(images, free, reached=True).ticks == 0
    assert make_bill(FREE, replace(free, usage=zeros), reached=True).ticks == 0


def test_usage_without_a_cost_is_priced() -> None:
    """Tokens without a cost are priced by the table, cached ones at their rate, and marked."""
    usage = Usage(100, 40, 5, 2, 107)
    bill = make_bill(CHAT, Settlement(Outcome.COMPLETE, usage=usage, usage_final=True), reached=True)
    assert bill.ticks == 60 * 12_500 + 40 * 2_000 + 7 * 25_000
    assert bill.estimated
    assert replace(bill.usage, cost_ticks=None) == usage


def test_usage_without_a_cost_is_priced_by_the_model_that_answered() -> None:
    """What was asked for may be another, and cheaper."""
    settled = Settlement(
        Outcome.COMPLETE, usage=Usage(100, 0, 10, 0, 110), model_served="grok-4.7", usage_final=True
    )
    assert make_bill(CHAT, settled, reached=True).ticks == 100 * 20_000 + 10 * 60_000


def test_a_running_count_is_an_estimate() -> None:
    """Upstream counted along and the client left: the figures are its own, but not the last."""
    usage = Usage(10, 0, 5, 0, 15, cost_ticks=999)
    left = Settlement(Outcome.CLIENT_ABORT, usage=usage, events=5, events_seen=5)
    bill = make_bill(CHAT, left, reached=True)
    assert (bill.ticks, bill.estimated) == (999, True)
    assert not make_bill(CHAT, replace(left, usage_final=True), reached=True).estimated


def test_a_complete_answer_whose_output_was_not_reported() -> None:
    """A message may tell its prompt at its beginning and nothing at its end: its events are counted."""
    told = Settlement(Outcome.COMPLETE, usage=Usage(10), usage_final=True, events_seen=50, text_tokens=50)
    bill = make_bill(CHAT, told, reached=True)
    assert (bill.ticks, bill.estimated) == (10 * 12_500 + 50 * 25_000, True)
    assert (bill.usage.prompt_tokens, bill.usage.completion_tokens, bill.tokens) == (10, 50, 60)


def test_a_usage_without_a_figure_is_none() -> None:
    """An object of another shape says as much as no object."""
    for told in (
        Settlement(Outcome.COMPLETE, usage_final=True, events_seen=5),
        Settlement(Outcome.COMPLETE, usage_final=True),
        Settlement(Outcome.CLIENT_ABORT, events_seen=5),
    ):
        bill = make_bill(CHAT, replace(told, usage=Usage()), reached=True)
        assert bill == make_bill(CHAT, told, reached=True)


ENDINGS: list[tuple[Outcome, GrokflaskError | None]] = [
    (Outcome.CLIENT_ABORT, None),
    (Outcome.TRUNCATED, StreamBrokenError()),
    (Outcome.TIMEOUT, IdleTimeoutError()),
    (Outcome.SHUTDOWN, ShuttingDownError()),
    (Outcome.UPSTREAM_ERROR, NoAnswerError()),
]


@pytest.mark.parametrize(("outcome", "error"), ENDINGS)
@pytest.mark.parametrize(("text", "silent"), [(0, 0), (7, 0), (7, 40)])
def test_cut_short_without_usage(
    outcome: Outcome, error: GrokflaskError | None, text: int, silent: int
) -> None:
    """The prompt is paid for, the text and the reasoning; never nothing, and marked as an estimate."""
    cut = Settlement(outcome, error, events_seen=text, text_tokens=text, silent_tokens=silent)
    bill = make_bill(CHAT, cut, reached=True)
    assert bill.estimated
    assert bill.ticks == 1000 * 12_500 + (text + silent) * 25_000
    usage = Usage(1000, None, text, silent or None, 1000 + text + silent, bill.ticks)
    assert (bill.usage, bill.tokens) == (usage, 1000 + text + silent)


@pytest.mark.parametrize(("outcome", "error"), [*ENDINGS, (Outcome.UPSTREAM_ERROR, UpstreamConnectError())])
def test_never_sent(outcome: Outcome, error: GrokflaskError | None) -> None:
    """What never got to upstream costs nothing, and that is known."""
    bill = make_bill(CHAT, Settlement(outcome, error), reached=False)
    assert (bill.ticks, bill.usage.cost_ticks, bill.estimated) == (0, 0, False)


def test_upstreams_refusal_is_free_and_its_failure_inside_is_not() -> None:
    """A 4xx before anything else costs nothing; an error object behind 100 events does not undo them."""
    refused = Settlement(Outcome.UPSTREAM_ERROR, UpstreamStatusError("no", status=429))
    assert (
        make_bill(CHAT, refused, reached=True).ticks,
        make_bill(CHAT, refused, reached=True).estimated,
    ) == (0, False)
    foreign = replace(refused, error=ForeignAnswerError())
    assert make_bill(CHAT, foreign, reached=True).ticks == 0
    inside = replace(refused, events_seen=100, text_tokens=100)
    assert make_bill(CHAT, inside, reached=True).ticks == 1000 * 12_500 + 100 * 25_000


def test_a_whole_reply_without_usage() -> None:
    """It is booked by its text, not by all that was reserved."""
    bill = make_bill(CHAT, Settlement(Outcome.COMPLETE, usage_final=True, text_tokens=9), reached=True)
    assert (bill.ticks, bill.estimated) == (1000 * 12_500 + 9 * 25_000, True)


def test_images_are_paid_when_they_are_made() -> None:
    """They cost upstream's figure, or the table's, even when the client has left."""
    images = estimate_images("grok-imagine-image", 2)
    told = Settlement(Outcome.COMPLETE, usage=Usage(cost_ticks=123), usage_final=True)
    assert (make_bill(images, told, reached=True).ticks, make_bill(images, told, reached=True).estimated) == (
        123,
        False,
    )
    for untold in (
        Settlement(Outcome.COMPLETE, usage_final=True),
        Settlement(Outcome.COMPLETE, usage=Usage(), usage_final=True),
        Settlement(Outcome.CLIENT_ABORT),
    ):
        bill = make_bill(images, untold, reached=True)
        assert (bill.ticks, bill.estimated, bill.tokens) == (400_000_000, True, 0)


def test_lists_are_free() -> None:
    """A look at the models costs nothing, however it ends."""
    for outcome in (Outcome.COMPLETE, Outcome.CLIENT_ABORT, Outcome.TIMEOUT):
        bill = make_bill(FREE, Settlement(outcome), reached=True)
        assert (bill.usage.cost_ticks, bill.estimated) == (0, False)
