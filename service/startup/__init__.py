"""Checks and steps of a plane before it serves."""
