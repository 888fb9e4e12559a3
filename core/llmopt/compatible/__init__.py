"""The OpenAI-compatible dialect: build its requests, read its responses, classify its errors.

These functions answer every hook that a plugin does not implement. Plugins whose provider differs in one place call
them and change the result. They do no I/O.
"""

from llmopt.compatible.chat import chat_body, parse_chat, parse_stream_event, plain_messages
from llmopt.compatible.defaults import build_request
from llmopt.compatible.embeddings import embed_body, parse_embeddings, rows_from_raw
from llmopt.compatible.errors import classify
from llmopt.compatible.models import map_models, model_from_entry, parse_catalog
from llmopt.compatible.rate_limits import rate_limit
from llmopt.compatible.rules import Rule

__all__ = [
    "Rule",
    "build_request",
    "chat_body",
    "classify",
    "embed_body",
    "map_models",
    "model_from_entry",
    "parse_catalog",
    "parse_chat",
    "parse_embeddings",
    "parse_stream_event",
    "plain_messages",
    "rate_limit",
    "rows_from_raw",
]
