"""From the client's request to the one that goes to xAI."""
