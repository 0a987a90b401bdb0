"""What clients learn about their limits: headers of an answer, and the errors of refused requests. No IO."""

from __future__ import annotations

import math

from grokflask.billing.money import format_usd
from grokflask.errors import (
    BudgetSpentError,
    FairShareError,
    GrokflaskError,
    TokenLimitError,
    TooManyStreamsError,
)
from grokflask.limits.counters import Ask, Grant, Refusal


def explain(refusal: Refusal, ask: Ask) -> GrokflaskError:
    """The error for a refused request, with Retry-After if a retry can succeed."""
    wait_s = refusal.retry_after_s
    headers = {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}
    used, limit = refusal.used, refusal.limit
    match refusal.reason:
        case "streams":
            if not limit:
                return TooManyStreamsError("This key may not stream.", headers=headers)
            return TooManyStreamsError(
                f"This key already has {limit} open streams, its limit.", headers=headers
            )
        case "share":
            return FairShareError(headers=headers)
        case "tokens" if wait_s is None:
            need = min(ask.tokens, ask.alone_tokens)
            return TokenLimitError(
                f"The prompt of this request has about {need} tokens, but this key "
                f"is limited to {limit} a minute: send a shorter prompt.",
                headers={"x-should-retry": "false", **_make_headers(limit, limit - used)},
            )
        case "tokens":
            headers |= _make_headers(limit, limit - used)
            need = _find_need(limit - used, ask.tokens, ask.alone_tokens, ask.least_tokens)
            return TokenLimitError(
                f"This key has used or reserved {used} of its {limit} tokens a minute, and this request "
                f"needs about {need} to begin. Try again in {headers['Retry-After']} s.",
                headers=headers,
            )
        case "budget_day" | "budget_month" as period:
            need = _find_need(limit - used, ask.ticks, ask.alone_ticks, ask.least_ticks)
            return BudgetSpentError(
                f"This key has spent or reserved {format_usd(used)} of its {format_usd(limit)} USD for the "
                f"{period.removeprefix('budget_')}, and this request needs about {format_usd(need)} USD to "
                "begin. Days and months begin at 00:00 UTC."
            )


def _find_need(left: int, whole: int, alone: int, least: int) -> int:
    """What a request needs at least: its prompt, or also its first words where other requests are open."""
    return min(whole, alone if left < alone else least)


def make_token_headers(ask: Ask, grant: Grant) -> dict[str, str]:
    """The headers of a token limit, named like OpenAI's."""
    if ask.tokens_per_minute is None or grant.tokens_left is None:
        return {}
    return _make_headers(ask.tokens_per_minute, grant.tokens_left)


def _make_headers(limit: int, left: int) -> dict[str, str]:
    return {"X-RateLimit-Limit-Tokens": str(limit), "X-RateLimit-Remaining-Tokens": str(max(0, left))}
