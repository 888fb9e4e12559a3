"""A llama model of random weights, small enough to start at once: vectors of 64 numbers that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_WIDTH, _HIDDEN, _HEADS, _CONTEXT = 64, 128, 4, 2048


def write_tiny_gguf(path: Path) -> None:
    """Write the model file. The same bytes every time."""
    import gguf

    rng = np.random.default_rng(7)
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    tokens = ["<s>", "</s>", *(_byte_token(value) for value in range(256)), "th", "he"]
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    # The server refuses a vocabulary without merges.
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, shape in _shapes(len(tokens)).items():
        weights = np.ones(shape) if name.endswith("norm.weight") else rng.standard_normal(shape) * 0.1
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    square = (_WIDTH, _WIDTH)
    return {
        "token_embd.weight": (vocabulary, _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (vocabulary, _WIDTH),
        "blk.0.attn_norm.weight": (_WIDTH,),
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": square,
        "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": square,
        "blk.0.ffn_norm.weight": (_WIDTH,),
        "blk.0.ffn_gate.weight": (_HIDDEN, _WIDTH),
        "blk.0.ffn_up.weight": (_HIDDEN, _WIDTH),
        "blk.0.ffn_down.weight": (_WIDTH, _HIDDEN),
    }


def _byte_token(value: int) -> str:
    """The printable character that byte-level tokenizers write for a byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if value in plain:
        return chr(value)
    return chr(0x100 + [other for other in range(256) if other not in plain].index(value))
