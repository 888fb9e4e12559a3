"""Start one emulator from a shell: ``python -m tests.support.emulators PROVIDER [--port P]``; Ctrl-C ends it."""

import argparse
import asyncio
import contextlib

from tests.support.emulators import (
    AnthropicEmulator,
    AzureEmulator,
    Emulator,
    GoogleEmulator,
    MistralEmulator,
    OllamaEmulator,
    OpenAIEmulator,
    TEIEmulator,
)

EMULATORS: dict[str, type[Emulator]] = {
    "openai": OpenAIEmulator,
    "azure": AzureEmulator,
    "anthropic": AnthropicEmulator,
    "google": GoogleEmulator,
    "mistral": MistralEmulator,
    "ollama": OllamaEmulator,
    "tei": TEIEmulator,
}


async def serve(emulator: Emulator, port: int) -> None:
    """Serve until cancelled."""
    await emulator.start(port)
    print(emulator.base_url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await emulator.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.emulators", description=__doc__)
    parser.add_argument("provider", choices=EMULATORS)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the base URL is printed")
    parser.add_argument("--key", help="the key asked for (default: test-key, none for ollama and tei)")
    parser.add_argument("--rpm", type=int, help="requests a minute")
    parser.add_argument("--tpm", type=int, help="tokens a minute")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds each request takes")
    options = vars(parser.parse_args())
    emulator, port = EMULATORS[options.pop("provider")], options.pop("port")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(emulator(**options), port))


if __name__ == "__main__":
    main()
