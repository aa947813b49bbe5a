"""Processes that this process starts and ends, and what they are given."""
