"""What ``config.json`` may say, and what is refused rather than computed wrongly."""

import json
from pathlib import Path

import pytest

from hetero_infer.spec import InputError, ModelSpec
from hetero_infer.spec.model import Rope
from tests.tiny_model import BLOOM, OPT

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
    assert (spec.head_dim, spec.num_key_value_heads, spec.positions, spec.num_layers) == (16, 4, Rope(10000.0), 4)


def test_rope_theta_is_found_where_transformers_5_writes_it() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "default"}
    assert ModelSpec.from_config(LLAMA | {"rope_parameters": rope}, "here").positions == Rope(5e5)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model_type", "gpt_neox", "model_type = 'gpt_neox': this version runs llama, mistral"),
        ("model_type", "qwen4", "did you mean qwen"),
        ("model_type", None, "model_type = None"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("rope_scaling", {"type": "linear"}, "rope_scaling: the field 'factor' is missing"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_scaling = {'type': 'dynamic'"),
        ("rope_scaling", {"rope_type": "longrope"}, "has default, linear, llama3 and yarn"),
        ("rope_scaling", "linear", "rope_scaling = 'linear': an object"),
        ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}, "rope_parameters: the field 'low_freq_factor'"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "truncate": False}, "truncate"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("hidden_act", "relu6", "hidden_act = 'relu6'"),
        ("num_hidden_layers", 0, "num_hidden_layers = 0"),
        ("hidden_size", "64", "hidden_size = '64'"),
        ("hidden_size", True, "hidden_size = True"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps = nan"),
        ("num_key_value_heads", 3, "no multiple"),
        ("head_dim", 15, "rotary embeddings need an even one"),
        ("eos_token_id", "</s>", "eos_token_id = '</s>'"),
        ("attention_bias", "yes", "attention_bias = 'yes'"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(field: str, value: object, named: str) -> None:
    with pytest.raises(InputError) as error:
        ModelSpec.from_config(LLAMA | {"head_dim": 16, field: value}, "here")
    assert named in str(error.value)
    assert "here" in str(error.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (OPT | {"hidden_size": 50}, "hidden_size = 50: no multiple of num_attention_heads = 4"),
        (OPT | {"activation_function": "swish"}, "activation_function = 'swish'"),
        ({**OPT, "ffn_dim": None}, "'ffn_dim' is missing"),
        (BLOOM | {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact = True"),
        (BLOOM | {"n_head": 5}, "no multiple of n_head = 5"),
        (BLOOM | {"layer_norm_epsilon": -1}, "layer_norm_epsilon = -1"),
        (LLAMA | {"model_type": "mistral", "sliding_window": 0}, "sliding_window = 0"),
        (
            LLAMA | {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types = ['full_attention']: 2 entries",
        ),
    ],
)
def test_other_families_refuse_by_name_too(config: dict[str, object], named: str) -> None:
    with pytest.raises(InputError) as error:
        ModelSpec.from_config(config, "here")
    assert named in str(error.value)


def test_families_have_the_defaults_of_transformers() -> None:
    from transformers import AutoConfig

    for model_type in ("llama", "mistral", "qwen2", "qwen3"):
        theirs = AutoConfig.for_model(model_type, num_attention_heads=32)
        said = {"num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 8, "num_hidden_layers": 2}
        spec = ModelSpec.from_config({"model_type": model_type, "vocab_size": 9, **said}, "here")
        head_dim = getattr(theirs, "head_dim", None) or 128
        assert (spec.num_key_value_heads, spec.head_dim) == (theirs.num_key_value_heads, head_dim), model_type
        assert spec.max_position_embeddings == theirs.max_position_embeddings
        assert spec.norm.epsilon == theirs.rms_norm_eps
        assert spec.tie_word_embeddings == theirs.tie_word_embeddings
        assert spec.sliding_window(0) == getattr(theirs, "sliding_window", None)
    assert ModelSpec.from_config(OPT, "here").tie_word_embeddings == AutoConfig.for_model("opt").tie_word_embeddings


def test_what_ends_a_text_is_read_from_the_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"eos_token_id": 7}))
    assert ModelSpec.from_folder(tmp_path).eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert ModelSpec.from_folder(tmp_path).eos_token_ids == (7, 8)


def test_original_bloom_configs_are_read() -> None:
    config = {"model_type": "bloom", "vocab_size": 9, "n_embed": 64, "n_layer": 2, "num_attention_heads": 8}
    spec = ModelSpec.from_config(config | {"seq_length": 512}, "here")
    assert (spec.hidden_size, spec.head_dim, spec.max_position_embeddings) == (64, 8, 512)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="'vocab_size' is missing"):
        ModelSpec.from_config({key: value for key, value in LLAMA.items() if key != "vocab_size"}, "here")
