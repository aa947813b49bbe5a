"""Metrics: the catalogue, the slots of processes, and the registry that adds them up."""
