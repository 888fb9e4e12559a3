"""Acme, an OpenAI-compatible provider, for llmopt."""

from llmopt import BatchLimit, Profile, hookimpl


@hookimpl
def provider_profile() -> Profile:
    """Where Acme is, and which variable holds its key."""
    return Profile(base_url="https://api.acme.example/v1", key_env=("ACME_API_KEY",), rpm=600)


@hookimpl
def batch_limit() -> BatchLimit:
    """What Acme's documentation says."""
    return BatchLimit(max_items=64, max_item_tokens=8_192)
