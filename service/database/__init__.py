"""The one place where state lives: the connections to PostgreSQL, and its schema."""
