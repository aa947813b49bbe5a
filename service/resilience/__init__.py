"""Limits the effect of a failing part on the others: deadlines, bulkhead, breaker, retry."""
