"""The prompt cache: which beginnings of prompts were read before, in blocks of whole tokens.

At xAI each server has its own cache, and requests with the same conversation id go to the same server. Here
each conversation has its own cache, and a request without an id finds nothing.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

BLOCK_TOKENS = 128
"""Cached tokens are a multiple of this, as clients of xAI's have measured."""
MAX_BLOCKS = 1_000_000
"""When there are more, the oldest are dropped."""


class PromptCache:
    """The digests of all blocks that were read. Thread-safe."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def read(self, conv_id: str, before: bytes, tokens: Iterable[str]) -> int:
        """Return how many of a prompt's first tokens are cached, and cache the whole prompt.

        `before` is what else has to be the same: the model, and what it reads ahead of the messages.
        """
        blocks = list(_digest_blocks(conv_id.encode("utf-8", "replace") + b"\0" + before, tokens))
        with self._lock:
            found = sum(1 for _ in takewhile(self._blocks.__contains__, blocks))
            for block in blocks:
                self._blocks.pop(block, None)
                self._blocks[block] = None  # the newest
            while len(self._blocks) > MAX_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return found * BLOCK_TOKENS


def _digest_blocks(before: bytes, tokens: Iterable[str]) -> Iterator[bytes]:
    """Yield one digest for each whole block, of all tokens up to its end."""
    state = hashlib.blake2b(before, digest_size=16)
    left = iter(tokens)
    while len(block := list(islice(left, BLOCK_TOKENS))) == BLOCK_TOKENS:
        state.update("\0".join(block).encode("utf-8", "replace") + b"\1")
        yield state.digest()
