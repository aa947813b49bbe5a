"""Starts the programs of a local stack and stops them together; independent of payments."""
