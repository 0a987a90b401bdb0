"""Answers on their way to the client, as a stream or whole, and the watch on clients that leave."""
