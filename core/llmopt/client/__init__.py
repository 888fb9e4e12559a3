"""The two faces of llmopt: `AsyncClient`, and `Client`, the same without await."""
