"""Events for merchants: the outbox, its deliveries, and the feed."""
