"""How fast lists of models are read, and in how much memory.

    python benchmarks/list_parsing.py FILE...

Each file is an answer to ``GET /models``, or models.dev's ``api.json``, whose models are put into the shape of one.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from llmopt import CatalogPage, HttpResponse, compatible
from llmopt.values.catalog import decode_models, encode_models

ROUNDS = 9


def body_of(path: Path) -> bytes:
    body = path.read_bytes()
    value = json.loads(body)
    if isinstance(value, dict) and "data" not in value:
        models = [model for provider in value.values() for model in provider["models"].values()]
        return json.dumps({"object": "list", "data": models}).encode()
    return body


def best_ms(work: Callable[[], object]) -> float:
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found) * 1e3


def page_of(body: bytes) -> CatalogPage:
    found = compatible.parse_catalog(HttpResponse(status=200, body=body), "p")
    assert isinstance(found, CatalogPage)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    print(
        f"{'file':34} {'models':>6} {'bytes':>9} {'parse':>7} {'pack':>7} {'unpack':>7} {'look':>7} {'peak MB':>8}"
    )
    print(f"{'':34} {'':6} {'':9} {'ms for 1,000 models':>31}")
    for path in parser.parse_args().files:
        body = body_of(path)
        models = page_of(body).models
        packed = encode_models(models)
        tracemalloc.start()
        page_of(body)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        times = [
            best_ms(lambda body=body: page_of(body)),  # type: ignore[misc] # bound now
            best_ms(lambda models=models: encode_models(models)),  # type: ignore[misc]
            best_ms(lambda packed=packed: decode_models(packed, provider="p")),  # type: ignore[misc]
            best_ms(lambda packed=packed: list(decode_models(packed, provider="p"))),  # type: ignore[misc]
        ]
        shown = " ".join(f"{each / len(models) * 1000:7.2f}" for each in times)
        print(f"{path.name:34} {len(models):6} {len(body):9} {shown} {peak:8.1f}")


if __name__ == "__main__":
    main()
