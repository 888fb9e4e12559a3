"""Sending HTTP requests: our connection pool over aiohttp, or any httpx transport."""
