"""The sandbox: an emulator of xAI's REST API over real HTTP, for demos and for tests of clients.

It imports no other part of grokflask.
"""

from grokflask.sandbox.faults import FAULTS
from grokflask.sandbox.kept import Exchange, Journal
from grokflask.sandbox.server import Sandbox

__all__ = ["FAULTS", "Exchange", "Journal", "Sandbox"]
