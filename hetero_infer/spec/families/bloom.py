"""BLOOM: ALiBi positions, one fused Linear for q, k and v, LayerNorm before each block and after the embedding."""

from hetero_infer.spec.families.config import ModelConfig
from hetero_infer.spec.model import Alibi, ModelSpec, Norm

LINEARS = {
    "self_attn.qkv_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
NORMS = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_attention_layernorm"}
TRAINED_TOKENS = 2048  # ALiBi has no last position; BLOOM was trained with so many, and `seq_length` may say more


def bloom(config: ModelConfig) -> ModelSpec:
    heads = config.count("n_head", "num_attention_heads")
    hidden = config.count("n_embed", "hidden_size")
    if config.content.get("pretraining_tp") not in (None, 1):
        config.refuse_unless("slow_but_exact", False, "with a pretraining_tp of more than 1 only false is supported")
    if hidden % heads:
        raise config.refusal("hidden_size", f"no multiple of n_head = {heads}")
    return ModelSpec(
        model_type="bloom",
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=config.count("n_layer", "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=config.count("seq_length", "max_position_embeddings", default=TRAINED_TOKENS),
        norm=Norm("layer", config.number("layer_norm_epsilon", default=1e-5)),
        positions=Alibi(),
        activation="gelu_pytorch_tanh",
        embedding_size=hidden,
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
        eos_token_ids=config.eos_token_ids(),
        tensors={
            "embed_tokens": "transformer.word_embeddings",
            "embed_norm": "transformer.word_embeddings_layernorm",
            **{part: f"transformer.h.{{}}.{name}" for part, name in (LINEARS | NORMS).items()},
            "norm": "transformer.ln_f",
            "lm_head": "lm_head",
        },
        biased=frozenset(LINEARS),
        residual_is_normed=config.flag("apply_residual_connection_post_layernorm", False),
    )
