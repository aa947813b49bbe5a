"""What every request passes: scope, authentication, bodies, headers, problems."""
