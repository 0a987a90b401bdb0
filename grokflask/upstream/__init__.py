"""The way to xAI: connections, the HTTP exchange over them, and its answer as it arrives."""
