"""The admin API: one blueprint, with its views in the modules of this folder."""

from grokflask.web.admin import keys, ledger, streams
from grokflask.web.admin.api import blueprint

__all__ = ["blueprint", "keys", "ledger", "streams"]
