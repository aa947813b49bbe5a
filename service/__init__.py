"""Holdfast: a payment service that holds when its provider or its database does not."""
