"""Servers that answer as the providers do, over real sockets, for tests. Facts: docs/development/provider-facts.md.

From a shell, at the root of the repository: ``python -m tests.support.emulators openai --port 8080``.
"""

from tests.support.emulators.anthropic import AnthropicEmulator
from tests.support.emulators.azure import AzureEmulator
from tests.support.emulators.base import Emulator, Received, Refusal, serve_in_thread, token_count, vector_for
from tests.support.emulators.google import GoogleEmulator
from tests.support.emulators.mistral import MistralEmulator, MistralModel
from tests.support.emulators.ollama import OllamaEmulator, OllamaModel
from tests.support.emulators.openai import OpenAIEmulator, go_duration
from tests.support.emulators.tei import TEIEmulator

__all__ = [
    "AnthropicEmulator",
    "AzureEmulator",
    "Emulator",
    "GoogleEmulator",
    "MistralEmulator",
    "MistralModel",
    "OllamaEmulator",
    "OllamaModel",
    "OpenAIEmulator",
    "Received",
    "Refusal",
    "TEIEmulator",
    "go_duration",
    "serve_in_thread",
    "token_count",
    "vector_for",
]
