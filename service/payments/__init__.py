"""What the service is about: payments, and how they stay right."""
