"""Rehearsals: faults from outside on the real links, and drills with a verdict. Never needed to pay."""
