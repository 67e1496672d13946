"""Embedding, decoder layer and head of any family, made of the parts that its `ModelSpec` has.

Every module is called as `layer(hidden, batch, cache)` (see `LayerDefinition`); parts are named as in `ModelSpec`.
"""

import torch
from torch import nn

from hetero_infer.models.attention import alibi_slopes, attend
from hetero_infer.models.kv_cache import KVCache
from hetero_infer.models.micro_batch import MicroBatch
from hetero_infer.models.rotary import rotary_table, rotate
from hetero_infer.quant.ends import embedding_for, empty_table, head_for
from hetero_infer.quant.linear import linear_for
from hetero_infer.spec import Choice, ModelSpec
from hetero_infer.spec.model import Alibi, Rope

ACTIVATIONS = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
}


class Embedding(nn.Module):
    def __init__(self, spec: ModelSpec, choice: Choice) -> None:
        super().__init__()
        self.embed_tokens = embedding_for(choice, spec)
        if spec.has("project_in"):
            self.project_in = nn.Linear(spec.embedding_size, spec.hidden_size, bias=False)
        if spec.has("embed_positions"):
            self.embed_positions = empty_table(spec.num_positions, spec.hidden_size)
            self.offset = spec.positions.offset
        if spec.has("embed_norm"):
            self.embed_norm = norm_for(spec, spec.hidden_size)
        self.has = spec.has

    def forward(self, token_ids: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        hidden = self.embed_tokens(token_ids).to(cache.dtype)
        if self.has("project_in"):
            hidden = self.project_in(hidden)
        if self.has("embed_positions"):
            hidden = hidden + self.embed_positions(batch.positions + self.offset)
        return self.embed_norm(hidden) if self.has("embed_norm") else hidden


class DecoderLayer(nn.Module):
    def __init__(self, spec: ModelSpec, index: int, choice: Choice) -> None:
        super().__init__()
        self.input_layernorm = norm_for(spec, spec.hidden_size)
        self.self_attn = Attention(spec, index, choice)
        self.post_attention_layernorm = norm_for(spec, spec.hidden_size)
        self.mlp = MLP(spec, choice)
        self.norms_after = spec.norms_after
        self.residual_is_normed = spec.residual_is_normed

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        if self.norms_after:
            hidden = self.input_layernorm(hidden + self.self_attn(hidden, batch, cache))
            return self.post_attention_layernorm(hidden + self.mlp(hidden))
        normed = self.input_layernorm(hidden)
        hidden = (normed if self.residual_is_normed else hidden) + self.self_attn(normed, batch, cache)
        normed = self.post_attention_layernorm(hidden)
        return (normed if self.residual_is_normed else hidden) + self.mlp(normed)


class Head(nn.Module):
    def __init__(self, spec: ModelSpec, choice: Choice) -> None:
        super().__init__()
        if spec.has("norm"):
            self.norm = norm_for(spec, spec.hidden_size)
        if spec.has("project_out"):
            self.project_out = nn.Linear(spec.hidden_size, spec.embedding_size, bias=False)
        self.lm_head = head_for(choice, spec)
        self.has = spec.has

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        return self.lm_head(self.features(hidden))

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """What `lm_head` multiplies."""
        if self.has("norm"):
            hidden = self.norm(hidden)
        return self.project_out(hidden) if self.has("project_out") else hidden


class Attention(nn.Module):
    def __init__(self, spec: ModelSpec, index: int, choice: Choice) -> None:
        super().__init__()
        self.index = index
        self.positions = spec.positions
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        self.window = spec.sliding_window(index)
        self.has = spec.has
        for part, linear in spec.linears.items():
            block, _, name = part.partition(".")
            if block == "self_attn":
                setattr(self, name, linear_for(choice, linear))
        if spec.has("self_attn.q_norm"):
            self.q_norm = norm_for(spec, spec.head_dim)
            self.k_norm = norm_for(spec, spec.head_dim)

    def forward(self, x: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        query, key, value = self._project(x)
        if self.has("self_attn.q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        slopes = None
        match self.positions:
            case Rope():
                cosine, sine = rotary_table(self.positions, self.head_dim, cache.max_tokens, x.dtype, x.device)
                cosine, sine = cosine[batch.positions, None], sine[batch.positions, None]
                query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
            case Alibi():
                slopes = alibi_slopes(self.heads, x.device)
        return self.o_proj(attend(query, key, value, self.index, batch, cache, self.window, slopes))

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries `[rows, heads, head_dim]`, keys and values `[rows, kv_heads, head_dim]`."""
        if self.has("self_attn.qkv_proj"):  # head by head: its query, its key, its value
            return self.qkv_proj(x).view(len(x), self.heads, 3, self.head_dim).unbind(2)
        query = self.q_proj(x).view(len(x), self.heads, self.head_dim)
        key = self.k_proj(x).view(len(x), self.kv_heads, self.head_dim)
        return query, key, self.v_proj(x).view(len(x), self.kv_heads, self.head_dim)


class MLP(nn.Module):
    def __init__(self, spec: ModelSpec, choice: Choice) -> None:
        super().__init__()
        linears = spec.linears
        self.is_gated = spec.has("mlp.gate_proj")
        if self.is_gated:
            self.gate_proj = linear_for(choice, linears["mlp.gate_proj"])
        self.up_proj = linear_for(choice, linears["mlp.up_proj"])
        self.down_proj = linear_for(choice, linears["mlp.down_proj"])
        self.activation = ACTIVATIONS[spec.activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_gated:
            return self.down_proj(self.activation(self.gate_proj(x)).mul_(self.up_proj(x)))
        return self.down_proj(self.activation(self.up_proj(x)))


class RMSNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


def norm_for(spec: ModelSpec, size: int) -> nn.Module:
    norm = spec.norm
    if norm.kind == "rms":
        return RMSNorm(size, norm.epsilon)
    return nn.LayerNorm(size, norm.epsilon, elementwise_affine=norm.affine)
