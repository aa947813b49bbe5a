"""Captures, voids and refunds: their rules, their path and their rows."""
