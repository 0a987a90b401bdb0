"""Files, responses, batches and videos that xAI keeps: which key owns them."""
