"""OPT: LayerNorm, learned positions, biases, a plain MLP.

OPT-350m normalises after each block and has no last norm; its embedding is narrower than its layers, with projections
at both ends.
"""

from hetero_infer.spec.families.config import ModelConfig
from hetero_infer.spec.model import LearnedPositions, ModelSpec, Norm

LINEARS = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.k_proj",
    "self_attn.v_proj": "self_attn.v_proj",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.up_proj": "fc1",
    "mlp.down_proj": "fc2",
}
NORMS = {"input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm"}
POSITION_OFFSET = 2
EPSILON = 1e-5  # torch's own, which no field changes


def opt(config: ModelConfig) -> ModelSpec:
    heads = config.count("num_attention_heads")
    hidden = config.count("hidden_size")
    embedding_size = config.count("word_embed_proj_dim", default=hidden)
    norms_before = config.flag("do_layer_norm_before", True)
    if hidden % heads:
        raise config.refusal("hidden_size", f"no multiple of num_attention_heads = {heads}")
    has_last_norm = norms_before and not config.flag("_remove_final_layer_norm", False)
    is_projected = embedding_size != hidden
    return ModelSpec(
        model_type="opt",
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.count("ffn_dim"),
        num_hidden_layers=config.count("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=config.count("max_position_embeddings", default=2048),
        norm=Norm("layer", EPSILON, config.flag("layer_norm_elementwise_affine", True)),
        positions=LearnedPositions(POSITION_OFFSET),
        activation=config.activation("activation_function", "relu"),
        embedding_size=embedding_size,
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        eos_token_ids=config.eos_token_ids(),
        tensors={
            "embed_tokens": "model.decoder.embed_tokens",
            "embed_positions": "model.decoder.embed_positions",
            **({"project_in": "model.decoder.project_in"} if is_projected else {}),
            **{part: f"model.decoder.layers.{{}}.{name}" for part, name in (LINEARS | NORMS).items()},
            **({"norm": "model.decoder.final_layer_norm"} if has_last_norm else {}),
            **({"project_out": "model.decoder.project_out"} if is_projected else {}),
            "lm_head": "lm_head",
        },
        biased=frozenset(LINEARS if config.flag("enable_bias", True) else ()),
        norms_after=not norms_before,
    )
