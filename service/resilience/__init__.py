"""What keeps one part's trouble from becoming everybody's: deadlines, bulkhead, breaker, retry."""
