"""The HTTP interfaces for people and programs; only this package uses Flask."""
