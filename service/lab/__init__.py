"""The laboratory, which production never imports: faults, sandbox, drills, local stack, observe."""
