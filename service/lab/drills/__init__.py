"""Drills: faults injected on the real links from outside, with a verdict. Payments never need it."""
