"""Health: the periodic checks and the components that they check."""
