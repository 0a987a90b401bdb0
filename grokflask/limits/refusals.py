"""What a client is told of its limits: in the headers of an answer, and when a request is refused. No IO."""

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
    """The error that says why, and when to come back."""
    wait_s = refusal.retry_after_s
    headers = {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}
    used, limit = refusal.used, refusal.limit
    match refusal.reason:
        case "streams":
            words = (
                f"This key may have {limit} streams open, and has." if limit else "This key may not stream."
            )
            return TooManyStreamsError(words, headers=headers)
        case "share":
            return FairShareError(headers=headers)
        case "tokens" if wait_s is None:
            return TokenLimitError(
                f"This request may use {ask.tokens} tokens, this key {limit} a minute: lower max_tokens.",
                headers={"x-should-retry": "false", **_tell_tokens(limit, limit - used)},
            )
        case "tokens":
            headers |= _tell_tokens(limit, limit - used)
            return TokenLimitError(
                f"Of {limit} tokens a minute this key has used or reserved {used}, and this request may use "
                f"{ask.tokens}. Try again in {headers['Retry-After']} s.",
                headers=headers,
            )
        case "budget_day" | "budget_month" as period:
            return BudgetSpentError(
                f"Of this key's {format_usd(limit)} USD for the {period.removeprefix('budget_')} "
                f"{format_usd(used)} are spent or reserved, and this request may cost "
                f"{format_usd(ask.ticks)}. Days and months begin at 00:00 UTC."
            )


def tell_tokens(ask: Ask, grant: Grant) -> dict[str, str]:
    """The headers of a limit of tokens, after OpenAI's."""
    if ask.tokens_per_minute is None or grant.tokens_left is None:
        return {}
    return _tell_tokens(ask.tokens_per_minute, grant.tokens_left)


def _tell_tokens(limit: int, left: int) -> dict[str, str]:
    return {"X-RateLimit-Limit-Tokens": str(limit), "X-RateLimit-Remaining-Tokens": str(max(0, left))}
