"""The model stories260K (karpathy/tinyllamas, MIT) as a Hugging Face folder, from its llama2.c files."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SPACE = "\u2581"  # SentencePiece's


def convert(data: bytes, target: Path) -> Path:
    """The file: seven int32 (dim, hidden, layers, heads, kv heads, ±vocabulary, context), then float32 weights."""
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", data[:28])
    floats = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    head_dim = dim // heads
    kv_dim = kv_heads * head_dim
    taken = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal taken
        count = torch.Size(shape).numel()
        taken += count
        return floats[taken - count : taken].view(shape).clone()

    weights = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    for name, shape, rotary_heads in [
        ("input_layernorm", (dim,), 0),
        ("self_attn.q_proj", (dim, dim), heads),
        ("self_attn.k_proj", (kv_dim, dim), kv_heads),
        ("self_attn.v_proj", (kv_dim, dim), 0),
        ("self_attn.o_proj", (dim, dim), 0),
        ("post_attention_layernorm", (dim,), 0),
        ("mlp.gate_proj", (hidden, dim), 0),
        ("mlp.down_proj", (dim, hidden), 0),
        ("mlp.up_proj", (hidden, dim), 0),
    ]:
        for layer, weight in enumerate(take(layers, *shape)):
            weight = halves_from_pairs(weight, rotary_heads) if rotary_heads else weight
            weights[f"model.layers.{layer}.{name}.weight"] = weight.contiguous()
    weights["model.norm.weight"] = take(dim)
    take(context, head_dim)  # tables of cosines and sines
    if vocab < 0:
        weights["lm_head.weight"] = take(abs(vocab), dim)
    assert taken == len(floats)
    target.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": abs(vocab),
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": vocab > 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def halves_from_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama2.c turns the neighbours (2i, 2i + 1) of a head, Hugging Face the elements (i, i + head_dim/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def pieces(data: bytes) -> list[bytes]:
    """Of `tok512.bin`: int32 longest piece, then per token float32 score, int32 length, bytes. From token 259 on, in
    the order in which they are merged."""
    found, position = [], 4
    while position < len(data):
        (length,) = struct.unpack("i", data[position + 4 : position + 8])
        found.append(data[position + 8 : position + 8 + length])
        position += 8 + length
    return found


def write_tokenizer(data: bytes, target: Path) -> None:
    """``tokenizer.json`` of `tok512.bin`: byte pairs, and single bytes for what no piece holds."""
    names = [piece.decode().strip("\n").replace(" ", SPACE) for piece in pieces(data)]
    vocab = {name: token for token, name in enumerate(names)}
    splits = [(name[:cut], name[cut:]) for name in names[259:] for cut in range(1, len(name))]
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [list(pair) for pair in splits if vocab.keys() >= set(pair)],
        "unk_token": names[0],
        "byte_fallback": True,
        "fuse_unk": True,
    }
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    parts = {"added_tokens": [], "normalizer": normalizer, "model": model, "decoder": decoder}
    (target / "tokenizer.json").write_text(json.dumps({"version": "1.0"} | parts))
