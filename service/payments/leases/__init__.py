"""The rows that are due: read in turn for each merchant, and the pauses between look-ups."""
