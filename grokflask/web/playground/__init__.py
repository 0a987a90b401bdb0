"""/: the playground in the browser."""
