"""/admin: the dashboard, rendered on the server."""
