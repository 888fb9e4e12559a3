"""Sending one request and reading one answer: `pool` over aiohttp, `seam` over any httpx transport."""
