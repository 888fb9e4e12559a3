"""The public clients: `AsyncClient`, and the synchronous `Client`."""
