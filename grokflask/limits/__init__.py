"""Limits and budgets: admission, and the counters behind it, in memory or in Redis."""
