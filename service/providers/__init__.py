"""Payment providers: one Protocol, one adapter a provider, and the guard that stands before it."""
