"""Starts the programs of a local run and keeps them together; knows nothing of payments."""
