"""One row for each exchange: how it is written, and what people ask of it."""
