"""A Llama's facts, where its weights do not matter."""

from hetero_infer.spec import ModelSpec


def llama_spec(**fields: object) -> ModelSpec:
    """Four layers of grouped-query attention; `fields` are those of ``config.json``."""
    config = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return ModelSpec.from_config(config | fields, "llama")
