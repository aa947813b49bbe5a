"""The fault proxy: a process on the links that delays, cuts and resets."""
