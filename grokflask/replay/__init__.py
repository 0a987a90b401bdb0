"""Answers that are kept, so that a repeated request with the same Idempotency-Key gets them again."""
