"""Access to the database and to Redis, and the database's tables with their versions."""
