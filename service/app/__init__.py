"""Builds each part once per process, for the data plane, the ops plane and the reconciler."""
