"""/admin/api: keys, the ledger and open streams, as JSON and CSV."""
