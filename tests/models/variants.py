"""Every family and variant that runs, as changes to the tiny models' configs."""

from tests.tiny_model import BLOOM, OPT

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
VARIANTS = {
    "grouped_heads_wider_than_hidden": {},
    "one_kv_head": {"num_key_value_heads": 1},
    "as_many_kv_heads": {"num_key_value_heads": 4, "head_dim": 12},
    "tied": {"tie_word_embeddings": True},
    "other_rope_theta": {"rope_theta": 500000.0},
    "one_layer": {"num_hidden_layers": 1, "vocab_size": 101},
    "llama_biases": {"attention_bias": True, "mlp_bias": True},
    "llama_gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "rope_linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "rope_llama3": {"rope_scaling": LLAMA3},
    "rope_yarn": {"rope_scaling": YARN},
    "rope_yarn_options": {"rope_scaling": {**YARN, "attention_factor": 0.7, "beta_fast": 8, "beta_slow": 2}},
    "rope_yarn_mscales": {"rope_scaling": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.8}},
    "rope_yarn_of_the_whole_length": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral_window": {"model_type": "mistral", "sliding_window": 11},
    "qwen2": {"model_type": "qwen2"},
    "qwen2_window": {"model_type": "qwen2", **SLIDING},
    "qwen3": {"model_type": "qwen3"},
    "qwen3_biases_tied": {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
    "opt": {"family": OPT},
    "opt_untied_odd": {"family": OPT, "tie_word_embeddings": False, "hidden_size": 44, "ffn_dim": 70},
    "opt_350m": {"family": OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "opt_without_last_norm": {"family": OPT, "_remove_final_layer_norm": True, "activation_function": "gelu"},
    "opt_plain": {"family": OPT, "enable_bias": False, "layer_norm_elementwise_affine": False},
    "bloom": {"family": BLOOM},
    "bloom_six_heads": {"family": BLOOM, "n_head": 6, "n_layer": 2},
    "bloom_normed_residual": {"family": BLOOM, "apply_residual_connection_post_layernorm": True},
}
