"""Connections to the database and to Redis, and the tables with their migrations."""
