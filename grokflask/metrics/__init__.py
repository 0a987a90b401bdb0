"""Counts kept while requests are served, and /metrics, which shows them for all workers."""
