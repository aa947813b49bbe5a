"""Due rows, read in turn for each merchant, and the pauses between look-ups."""
