"""The ledger, one row for each exchange: how rows are written and queried."""
