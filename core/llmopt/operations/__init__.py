"""The operations of a client over the engine: embed, chat and list models, with caching and recovery."""
