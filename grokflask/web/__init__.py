"""The edge: Flask's blueprints. Nothing below this package knows Flask."""
