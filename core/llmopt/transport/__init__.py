"""Sending HTTP requests: our connection pool, or any httpx transport."""
