"""HTTPS to the outside under a deadline; the only room that uses requests."""
