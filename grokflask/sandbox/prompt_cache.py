"""The prompt cache: what each of some pretended servers has read of prompts, in blocks of whole tokens.

xAI keeps what a server has computed for a prompt, on that server. Requests with the same conversation id go
to one server; those without go from one to the next here, where xAI balances its load.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from itertools import islice

SERVERS = 16
BLOCK_TOKENS = 128
"""What is found is a multiple of it, as clients of xAI's have measured."""
MAX_BLOCKS = 100_000
"""Of one server; then the oldest go."""


class PromptCache:
    """The servers' memories. Safe from any thread."""

    def __init__(self) -> None:
        self._servers: list[dict[bytes, None]] = [{} for _ in range(SERVERS)]
        self._next = 0
        self._lock = threading.Lock()

    def read(self, conv_id: str | None, before: bytes, tokens: Iterable[str]) -> int:
        """Return how many of a prompt's first tokens its server had read before; now it has read them all.

        `before` is what else must have been the same: the model, and what it reads ahead of the messages.
        """
        blocks = list(_digest_blocks(before, tokens))
        with self._lock:
            server = self._servers[self._choose(conv_id)]
            found = 0
            while found < len(blocks) and blocks[found] in server:
                found += 1
            for block in blocks:
                server.pop(block, None)
                server[block] = None  # the newest
            while len(server) > MAX_BLOCKS:
                del server[next(iter(server))]
        return found * BLOCK_TOKENS

    def _choose(self, conv_id: str | None) -> int:
        if conv_id:
            return (
                int.from_bytes(hashlib.blake2b(conv_id.encode("utf-8", "replace"), digest_size=4).digest())
                % SERVERS
            )
        self._next = (self._next + 1) % SERVERS
        return self._next


def _digest_blocks(before: bytes, tokens: Iterable[str]) -> Iterator[bytes]:
    """Yield a digest for each whole block: of all the tokens up to its end."""
    state = hashlib.blake2b(before, digest_size=16)
    left = iter(tokens)
    while len(block := list(islice(left, BLOCK_TOKENS))) == BLOCK_TOKENS:
        state.update("\0".join(block).encode("utf-8", "replace") + b"\1")
        yield state.digest()
