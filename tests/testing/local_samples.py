"""How TEI and Ollama answer natively, for the kit."""

from __future__ import annotations

import json

from llmopt.testing import SampleError, SamplePage, SampleRows, Samples


def _tei_rows(answer: SampleRows) -> bytes:
    return json.dumps([list(row) for _, row in answer.rows]).encode()


_TEI_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


def _tei_error(error: SampleError) -> bytes:
    kind = _TEI_TYPES.get(error.status, "Validation")
    return b"" if error.status == 401 else json.dumps({"error": error.message, "error_type": kind}).encode()


def _ollama_rows(answer: SampleRows) -> bytes:
    rows = [list(row) for _, row in answer.rows]
    return json.dumps(
        {"model": answer.model, "embeddings": rows, "prompt_eval_count": answer.tokens}
    ).encode()


def _ollama_page(page: SamplePage) -> bytes:
    return json.dumps({"models": [{"name": model, "model": model} for model in page.models]}).encode()


def _ollama_error(error: SampleError) -> bytes:
    return json.dumps({"error": error.message}).encode()


TEI = Samples(
    base_url="http://127.0.0.1:3000",
    options={"flavour": "tei"},
    embeddings=_tei_rows,
    error=_tei_error,
    indexed=False,
    ignores={"model"},
    without={"catalog"},
)
OLLAMA = Samples(
    base_url="http://127.0.0.1:11434",
    options={"flavour": "ollama"},
    embeddings=_ollama_rows,
    catalog=_ollama_page,
    error=_ollama_error,
    indexed=False,
    ignores={"input_type"},
)
