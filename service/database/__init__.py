"""Connections to PostgreSQL, which holds all durable state, and its schema."""
