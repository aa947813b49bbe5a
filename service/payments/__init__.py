"""Payments: their rules, rows, settlement and events."""
