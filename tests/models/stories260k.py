"""Convert the llama2.c checkpoint stories260K (karpathy/tinyllamas, MIT) into a Hugging Face folder."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SHARED = Path(os.environ.get("HETERO_INFER_SHARED", "../shared"))
SOURCE = SHARED / "data" / "models" / "stories260K"


def stories_folder(target: Path) -> Path:
    """Write the model to `target`, or skip the test where the file is not there."""
    binary = SOURCE / "stories260K.bin"
    if not binary.exists():
        pytest.skip(f"{binary} is not there; HETERO_INFER_SHARED names the folder of shared data")
    return convert(binary.read_bytes(), target)


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


def decode(token_ids: list[int]) -> str:
    """By `tok512.bin`: int32 longest piece, then per token float32 score, int32 length, bytes."""
    data = (SOURCE / "tok512.bin").read_bytes()
    pieces, position = [], 4
    while position < len(data):
        (length,) = struct.unpack("i", data[position + 4 : position + 8])
        pieces.append(data[position + 8 : position + 8 + length])
        position += 8 + length
    return b"".join(pieces[token] for token in token_ids).decode().strip()
