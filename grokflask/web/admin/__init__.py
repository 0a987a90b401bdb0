"""The admin API: one blueprint, whose views stand in the modules of this folder."""

from grokflask.web.admin import keys, ledger, streams
from grokflask.web.admin.api import blueprint

__all__ = ["blueprint", "keys", "ledger", "streams"]
