"""The gunicorn worker: frames requests, refuses overload, stops gracefully."""
