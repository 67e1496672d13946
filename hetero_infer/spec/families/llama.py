"""Llama and what its layers can carry: Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3 (norms on q and k).

RMSNorm before each block, rotary positions, grouped-query attention, gated MLP; tied or untied embeddings. Names and
defaults are those of `transformers`' configuration classes.
"""

import math

from hetero_infer.spec.families.config import ModelConfig
from hetero_infer.spec.model import LinearScaling, Llama3Scaling, ModelSpec, Norm, Rope, YarnScaling

LAYER = "model.layers.{}."
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION_TYPES = ("full_attention", "sliding_attention")
# Where a field is not said: key-value heads (None: as many as query heads), size of a head (None: hidden / heads),
# positions, and the window (0: none).
DEFAULTS = {
    "llama": (None, None, 2048, 0),
    "mistral": (8, None, 131072, 4096),
    "qwen2": (32, None, 32768, 4096),
    "qwen3": (32, 128, 32768, 4096),
}


def llama(config: ModelConfig) -> ModelSpec:
    model_type = config.content["model_type"]
    kv_heads, head_dim, positions, window = DEFAULTS[model_type]
    heads = config.count("num_attention_heads")
    hidden = config.count("hidden_size")
    layers = config.count("num_hidden_layers")
    parts = (*ATTENTION, *MLP, *NORMS, *(QK_NORMS if model_type == "qwen3" else ()))
    config.refuse_unless("partial_rotary_factor", 1.0, "only whole heads are rotated in this version")
    max_positions = config.count("max_position_embeddings", default=positions)
    return ModelSpec(
        model_type=model_type,
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.count("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(config, kv_heads or heads, heads),
        head_dim=config.count("head_dim", default=head_dim or hidden // heads),
        max_position_embeddings=max_positions,
        norm=Norm("rms", config.number("rms_norm_eps", default=1e-6)),
        positions=_rope(config, max_positions),
        activation=config.activation("hidden_act", "silu"),
        embedding_size=hidden,
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        eos_token_ids=config.eos_token_ids(),
        tensors={
            "embed_tokens": "model.embed_tokens",
            **{part: LAYER + part for part in parts},
            "norm": "model.norm",
            "lm_head": "lm_head",
        },
        biased=_biased(config, model_type),
        sliding_windows=_sliding_windows(config, layers, window),
    )


def _key_value_heads(config: ModelConfig, default: int, heads: int) -> int:
    """An explicit null means as many as query heads, as in `transformers`."""
    said_null = "num_key_value_heads" in config.content and config.content["num_key_value_heads"] is None
    return int(heads if said_null else config.count("num_key_value_heads", default=default))


def _biased(config: ModelConfig, model_type: str) -> frozenset[str]:
    if model_type == "qwen2":
        return frozenset(ATTENTION[:3])
    if model_type == "mistral":
        return frozenset()
    attention = ATTENTION if config.flag("attention_bias", False) else ()
    mlp = MLP if model_type == "llama" and config.flag("mlp_bias", False) else ()
    return frozenset((*attention, *mlp))


def _sliding_windows(config: ModelConfig, layers: int, default: int) -> tuple[int | None, ...]:
    """Mistral's holds for every layer; Qwen's must be switched on, and `layer_types` or a border says for which."""
    model_type = config.content["model_type"]
    if model_type == "llama":
        return ()
    if model_type == "mistral":
        said_null = "sliding_window" in config.content and config.content["sliding_window"] is None
        return () if said_null else (config.count("sliding_window", default=default),) * layers
    if not config.flag("use_sliding_window", False):
        return ()
    window = config.count("sliding_window", default=default)
    types = config.content.get("layer_types")
    if types is None:
        first = config.count("max_window_layers", default=28)
        types = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in ATTENTION_TYPES for kind in types):
        raise config.refusal("layer_types", f"{layers} entries, each 'full_attention' or 'sliding_attention'")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rope(config: ModelConfig, max_positions: int) -> Rope:
    """From `rope_theta` and `rope_scaling`, or from `rope_parameters`, where transformers 5 keeps both."""
    field = "rope_parameters" if config.content.get("rope_parameters") else "rope_scaling"
    scaling = config.table(field)
    theta = config.number("rope_theta", default=10000.0)
    if scaling is None:
        return Rope(theta)
    theta = scaling.number("rope_theta", default=theta)
    if theta <= 1:
        raise config.refusal("rope_theta", "a number above 1")
    kind = scaling.content.get("rope_type", scaling.content.get("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, LinearScaling(scaling.number("factor")))
    if kind == "llama3":
        return Rope(
            theta,
            Llama3Scaling(
                scaling.number("factor"),
                scaling.number("low_freq_factor"),
                scaling.number("high_freq_factor"),
                scaling.count("original_max_position_embeddings"),
            ),
        )
    if kind == "yarn":
        return Rope(theta, _yarn(scaling, max_positions))
    raise config.refusal(field, "of the rope types this version has default, linear, llama3 and yarn")


def _yarn(scaling: ModelConfig, max_positions: int) -> YarnScaling:
    """As `transformers` reads it: where the original length is said, the factor is what the model's length makes of
    it, whatever `factor` says."""
    scaling.refuse_unless("truncate", True, "only true is supported")
    original = scaling.count("original_max_position_embeddings", default=None)
    factor = scaling.number("factor") if original is None else max_positions / original
    mscale, mscale_all_dim = (scaling.number(name, default=None) for name in ("mscale", "mscale_all_dim"))
    if mscale and mscale_all_dim:
        default = _attention_scale(factor, mscale) / _attention_scale(factor, mscale_all_dim)
    else:
        default = _attention_scale(factor, 1.0)
    return YarnScaling(
        factor,
        original or max_positions,
        scaling.number("attention_factor", default=default),
        scaling.number("beta_fast", default=32.0),
        scaling.number("beta_slow", default=1.0),
    )


def _attention_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
