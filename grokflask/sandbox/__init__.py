"""The sandbox: an emulator of xAI's REST API over real HTTP, for demos, tests and trying one's own client.

It stands alone: it imports nothing else of this package, and nothing that it says was said by Grok.
"""

from grokflask.sandbox.faults import FAULTS
from grokflask.sandbox.journal import Exchange, Journal
from grokflask.sandbox.server import Sandbox

__all__ = ["FAULTS", "Exchange", "Journal", "Sandbox"]
