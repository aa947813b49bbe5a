"""The REST resources of the data plane: one module each, with their schemas."""
