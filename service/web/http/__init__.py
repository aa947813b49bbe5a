"""The steps of every request: scope, authentication, bodies, headers, problems."""
