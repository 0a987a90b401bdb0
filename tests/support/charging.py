"""An upstream that charges like xAI: for the prompt, hidden reasoning, and each token that it has made."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, defaultdict
from typing import Any

from grokflask.billing.prices import price_tokens
from support.scripted import Exchange, ScriptedUpstream, chat_chunk

MODEL = "grok-4.7"
PROMPT_TOKENS = 40
EVENT_TOKENS = 5
TICK_S = 0.05


class ChargingUpstream(ScriptedUpstream):
    """Answers as `user` says: "NAME VISIBLE REASONING", in tokens, at `pace` tokens a second.

    Attributes:
        charged: ticks by NAME.
        caps: those of the requests that had one, by NAME.
    """

    def __init__(self, pace: float) -> None:
        super().__init__(self._answer)
        self.pace = pace
        self.charged: Counter[str] = Counter()
        self.caps: defaultdict[str, list[int]] = defaultdict(list)
        self._noting = threading.Lock()

    def _answer(self, exchange: Exchange) -> None:
        document = exchange.document
        name, visible, reasoning = (document.get("user") or "x 10 0").split()
        cap = document.get("max_completion_tokens", document.get("max_tokens"))
        if cap is not None:
            self.caps[name].append(cap)
        tokens = {"visible": min(int(visible), cap or 10**9), "reasoning": int(reasoning)}
        made: Counter[str] = Counter()
        try:
            (self._stream if document.get("stream") else self._reply)(exchange, tokens, made)
        except OSError:
            exchange.closing = True
        with self._noting:
            self.charged[name] += price_tokens(MODEL, PROMPT_TOKENS, made.total())

    def _stream(self, exchange: Exchange, tokens: dict[str, int], made: Counter[str]) -> None:
        exchange.start()
        self._make(exchange, "reasoning", tokens["reasoning"], made)
        ahead = 0.0
        while made["visible"] < tokens["visible"]:
            new = min(EVENT_TOKENS, tokens["visible"] - made["visible"])
            made["visible"] += new
            exchange.event(chat_chunk("word" * new, model=MODEL))
            ahead += new / self.pace
            if ahead > TICK_S:
                time.sleep(ahead)
                ahead = 0.0
        exchange.event(
            chat_chunk("", model=MODEL, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        )
        exchange.event(chat_chunk("", model=MODEL, choices=[], usage=self._count(made)))
        exchange.event("[DONE]")
        exchange.end()

    def _reply(self, exchange: Exchange, tokens: dict[str, int], made: Counter[str]) -> None:
        for kind, number in tokens.items():
            self._make(exchange, kind, number, made)
        message = {"role": "assistant", "content": "word" * made["visible"]}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        exchange.reply({"id": "1", "model": MODEL, "choices": choices, "usage": self._count(made)})

    def _make(self, exchange: Exchange, kind: str, number: int, made: Counter[str]) -> None:
        """Works in silence. Raises OSError soon after the gateway has left."""
        while made[kind] < number:
            new = min(int(self.pace * TICK_S) or 1, number - made[kind])
            made[kind] += new
            time.sleep(new / self.pace)
            exchange.sock.setblocking(False)
            try:
                if exchange.sock.recv(1, socket.MSG_PEEK) == b"":
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            finally:
                exchange.sock.setblocking(True)

    def _count(self, made: Counter[str]) -> dict[str, Any]:
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": made["visible"],
            "total_tokens": PROMPT_TOKENS + made.total(),
            "completion_tokens_details": {"reasoning_tokens": made["reasoning"]},
            "cost_in_usd_ticks": price_tokens(MODEL, PROMPT_TOKENS, made.total()),
        }
