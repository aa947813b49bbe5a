"""The pages and calls of the ops plane: console, diagnostics."""
