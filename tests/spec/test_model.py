"""What ``config.json`` may say, and what is refused rather than computed wrongly."""

import pytest

from hetero_infer.spec import InputError, ModelSpec

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def test_what_is_not_said_follows_from_the_rest() -> None:
    spec = ModelSpec.from_config(LLAMA, "here")
    assert (spec.head_dim, spec.num_key_value_heads, spec.rope_theta, spec.num_layers) == (16, 4, 10000.0, 4)


def test_rope_theta_is_found_where_transformers_5_writes_it() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "default"}
    assert ModelSpec.from_config(LLAMA | {"rope_parameters": rope}, "here").rope_theta == 5e5


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model_type", "opt", "'opt'"),
        ("rope_scaling", {"type": "linear"}, "rope_scaling"),
        ("rope_parameters", {"rope_type": "llama3"}, "rope_parameters"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("hidden_act", "gelu", "hidden_act"),
        ("num_hidden_layers", 0, "num_hidden_layers = 0"),
        ("hidden_size", "64", "hidden_size = '64'"),
        ("num_key_value_heads", 3, "no multiple"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(field: str, value: object, named: str) -> None:
    with pytest.raises(InputError) as error:
        ModelSpec.from_config(LLAMA | {"head_dim": 16, field: value}, "here")
    assert named in str(error.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="'vocab_size' is missing"):
        ModelSpec.from_config({key: value for key, value in LLAMA.items() if key != "vocab_size"}, "here")
