"""The Llama family: RMSNorm, rotary positions, grouped-query attention, gated MLP; tied or untied embeddings."""

from functools import lru_cache

import torch
from torch import nn

from hetero_infer.models.attention import attend
from hetero_infer.models.kv_cache import KVCache
from hetero_infer.models.layers import LayerDefinition
from hetero_infer.models.micro_batch import MicroBatch
from hetero_infer.quant.linear import linear_for
from hetero_infer.spec import Choice, ModelSpec


def llama_layers(spec: ModelSpec) -> list[LayerDefinition]:
    embedding_weight = "model.embed_tokens.weight"
    head_weight = embedding_weight if spec.tie_word_embeddings else "lm_head.weight"
    return [
        LayerDefinition("embedding", lambda _: LlamaEmbedding(spec), {"weight": embedding_weight}),
        *(_decoder_definition(spec, index) for index in range(spec.num_hidden_layers)),
        LayerDefinition(
            "head", lambda _: LlamaHead(spec), {"norm.weight": "model.norm.weight", "lm_head.weight": head_weight}
        ),
    ]


def _decoder_definition(spec: ModelSpec, index: int) -> LayerDefinition:
    parameters = [f"{name}.weight" for name in (*spec.linear_shapes, "input_layernorm", "post_attention_layernorm")]
    return LayerDefinition(
        f"decoder {index}",
        lambda choice: LlamaDecoderLayer(spec, index, choice),
        {name: f"model.layers.{index}.{name}" for name in parameters},
        tuple(spec.linear_shapes),
    )


class LlamaEmbedding(nn.Embedding):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.vocab_size, spec.hidden_size)

    def forward(self, token_ids: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        return super().forward(token_ids)


class LlamaDecoderLayer(nn.Module):
    def __init__(self, spec: ModelSpec, index: int, choice: Choice) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec)
        self.self_attn = LlamaAttention(spec, index, choice)
        self.post_attention_layernorm = RMSNorm(spec)
        self.mlp = LlamaMLP(spec, choice)

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), batch, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LlamaHead(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm = RMSNorm(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        return self.lm_head(self.norm(hidden))


class RMSNorm(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(spec.hidden_size))
        self.epsilon = spec.rms_norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class LlamaAttention(nn.Module):
    def __init__(self, spec: ModelSpec, index: int, choice: Choice) -> None:
        super().__init__()
        self.index = index
        self.head_dim = spec.head_dim
        self.rope_theta = spec.rope_theta
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.q_proj = linear_for(choice, spec.hidden_size, queries)
        self.k_proj = linear_for(choice, spec.hidden_size, keys)
        self.v_proj = linear_for(choice, spec.hidden_size, keys)
        self.o_proj = linear_for(choice, queries, spec.hidden_size)

    def forward(self, x: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        rows = len(x)
        cosine, sine = rotary_table(self.head_dim, self.rope_theta, cache.max_tokens, x.dtype, x.device)
        cosine, sine = cosine[batch.positions, None], sine[batch.positions, None]
        query = rotate(self.q_proj(x).view(rows, -1, self.head_dim), cosine, sine)
        key = rotate(self.k_proj(x).view(rows, -1, self.head_dim), cosine, sine)
        value = self.v_proj(x).view(rows, -1, self.head_dim)
        return self.o_proj(attend(query, key, value, self.index, batch, cache))


class LlamaMLP(nn.Module):
    def __init__(self, spec: ModelSpec, choice: Choice) -> None:
        super().__init__()
        self.gate_proj = linear_for(choice, spec.hidden_size, spec.intermediate_size)
        self.up_proj = linear_for(choice, spec.hidden_size, spec.intermediate_size)
        self.down_proj = linear_for(choice, spec.intermediate_size, spec.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


@lru_cache(maxsize=4)
def rotary_table(
    head_dim: int, theta: float, num_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine `[num_positions, head_dim]` of RoPE (Su et al., arXiv 2104.09864), both halves alike."""
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim))
    angle = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair `(x[i], x[i + head_dim/2])` of `[rows, heads, head_dim]` by its row's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
