"""The way to PostgreSQL: which one, its connections, what travels together, its schema. Nothing here knows HTTP."""
