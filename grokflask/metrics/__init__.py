"""What is counted while requests are served, and how /metrics shows it for all workers."""
