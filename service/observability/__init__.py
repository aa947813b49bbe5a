"""What the service tells people about itself: metrics, logs, traces, health, statistics."""
