"""The sub-commands of `python -m service`, a module each."""
