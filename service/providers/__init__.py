"""Payment providers: one Protocol, one adapter for each provider, and the guards around it."""
