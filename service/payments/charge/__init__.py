"""One payment from claim to record: its rules, its path and its rows."""
