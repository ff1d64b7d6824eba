"""Runs models: torch lives here, in a worker process of its own."""
