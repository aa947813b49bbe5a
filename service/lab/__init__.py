"""What production never imports: faults, sandbox, drills, local stack, observe."""
