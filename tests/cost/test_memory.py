"""Bytes of each part, against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch

from hetero_infer.cost.memory import (
    ATTENTION_BLOCK_TOKENS,
    DEQUANTISE_BLOCK_WEIGHTS,
    ROW_BLOCK,
    decoder_layer_bytes,
    dequantise_bytes,
    end_layer_bytes,
    kv_cache_bytes,
    linear_bytes,
    stage_memory,
    with_margin,
    without_margin,
    workspace_bytes,
)
from hetero_infer.models import layers_of
from hetero_infer.models.attention import QUERY_BLOCK
from hetero_infer.models.micro_batch import row_block
from hetero_infer.quant.linear import BLOCK_WEIGHTS
from hetero_infer.quant.packing import CODES_PER_BLOCK
from hetero_infer.spec import UNQUANTISED, Choice, ModelSpec, Workload
from hetero_infer.spec.model import ZEROS_PER_BLOCK, Linear
from tests.llama import llama_spec
from tests.tiny_model import BLOOM, OPT, TINY

FAMILIES = (
    TINY | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    TINY | {"model_type": "qwen2"},
    TINY | {"model_type": "qwen3"},
    OPT,
    OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "tie_word_embeddings": False},
    OPT | {"layer_norm_elementwise_affine": False, "enable_bias": False},
    BLOOM,
)
MODEL = llama_spec(vocab_size=100, intermediate_size=96)
WORKLOAD = Workload(batch_size=6, prompt_tokens=50, new_tokens=20)


def test_an_unquantised_linear_takes_an_element_per_weight() -> None:
    assert linear_bytes(Linear(96, 64, False), UNQUANTISED, 4) == 96 * 64 * 4
    assert linear_bytes(Linear(96, 64, False), UNQUANTISED, 2) == 96 * 64 * 2


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_quantised_linear_takes_words_zeros_scales_and_group_indices(bits: int) -> None:
    # 64 inputs are 2 * bits words of int32 per output; one group; 96 outputs are 3 * bits words of zeros
    by_hand = 2 * bits * 96 * 4 + 1 * 3 * bits * 4 + 1 * 96 * 2 + 64 * 4
    assert linear_bytes(Linear(96, 64, False), Choice(bits, 64), 4) == by_hand


def test_a_quantised_linear_is_padded_to_whole_words_and_groups() -> None:
    # K = 70 → 96 packed inputs, 2 groups of 64; N = 33 → 64 packed zeros
    assert linear_bytes(Linear(33, 70, False), Choice(4, 64), 4) == 12 * 33 * 4 + 2 * 8 * 4 + 2 * 33 * 2 + 70 * 4


def test_a_decoder_layer_is_its_linears_and_its_norms() -> None:
    weights = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64
    assert decoder_layer_bytes(MODEL, UNQUANTISED, 4) == (weights + 2 * 64) * 4
    assert decoder_layer_bytes(MODEL, Choice(4, 64), 4) < decoder_layer_bytes(MODEL, Choice(8, 64), 4)


def test_tied_weights_count_once_only_where_embedding_and_head_stand_together() -> None:
    table, norm = 100 * 64 * 4, 64 * 4
    tied = replace(MODEL, tie_word_embeddings=True)
    assert end_layer_bytes(tied, UNQUANTISED, UNQUANTISED, 4) == table + norm
    assert end_layer_bytes(MODEL, UNQUANTISED, UNQUANTISED, 4) == 2 * table + norm
    assert end_layer_bytes(tied, UNQUANTISED, None, 4) == table
    assert end_layer_bytes(tied, None, UNQUANTISED, 4) == table + norm
    assert end_layer_bytes(tied, None, None, 4) == 0


def test_a_quantised_end_is_a_tensor_of_its_own_also_where_weights_are_tied() -> None:
    table, norm, eight = 100 * 64 * 4, 64 * 4, Choice(8, 64)
    quantised = linear_bytes(Linear(100, 64, False), eight, 4)
    tied = replace(MODEL, tie_word_embeddings=True)
    for model in (tied, MODEL):
        assert end_layer_bytes(model, UNQUANTISED, eight, 4) == table + quantised + norm
        assert end_layer_bytes(model, eight, UNQUANTISED, 4) == table + quantised + norm
        assert end_layer_bytes(model, eight, eight, 4) == 2 * quantised + norm


def test_the_kv_cache_has_a_slot_per_sequence_in_whole_blocks_of_64_tokens() -> None:
    # 50 + 20 - 1 = 69 tokens → 128; keys and values of 2 heads of 16
    assert kv_cache_bytes(MODEL, WORKLOAD, 2) == 6 * 128 * (2 * 2 * 16) * 2
    assert kv_cache_bytes(MODEL, Workload(6, 50, 15), 2) == 6 * 64 * (2 * 2 * 16) * 2


def workspace(prefill_size: int, decode_size: int, workload: Workload = WORKLOAD, **where: bool) -> int:
    of = {"is_first": True, "is_last": True, "dequantises": False} | where
    return workspace_bytes(MODEL, workload, prefill_size, decode_size, 4, **of)


def test_the_workspace_is_that_of_the_larger_phase() -> None:
    # Three prompts of 50 tokens attend: input, normed input, query, keys and values, cosines and sines, and what comes
    # of it; of one prompt at a time its part of that, the mask, scores and their softmax; tables of 128 positions.
    rows, tables = 3 * 50 * 4, 2 * 128 * 16 * 4
    attending = 2 * 64 + 64 + 2 * 32 + 2 * 16
    prefill = rows * (attending + 64) + 50 * 64 * 4 + 50 * 50 * 9 + 2 * 4 * 50 * 50 * 4 + tables
    assert workspace(3, 1) == prefill
    messages = 2 * (3 * 50 * 64 * 4 + 896)  # the header of 3 prompts of 50 tokens is 840 bytes, in blocks of 64
    assert workspace(3, 1, is_last=False) == workspace(3, 1, is_first=False) == prefill + messages
    assert workspace(3, 1, is_first=False, is_last=False) == prefill + 2 * messages
    buffer = 96 * 64 * (4 + 12)  # while it is there, scores are not
    assert workspace(3, 1, dequantises=True) == rows * (attending + 64 + 64) + buffer + tables

    long = Workload(6, 1, 400)  # decode's scores over 448 cached tokens outweigh a prompt of one token
    scores = 6 * 448 * (2 * 4 * 4 + 9) + 2 * 6 * 64 * 4
    assert workspace(6, 6, long) == 6 * (attending + 64) * 4 + scores + 2 * 448 * 16 * 4


def test_the_logits_of_a_large_vocabulary_outweigh_the_layers() -> None:
    wide = replace(MODEL, vocab_size=100_000)
    for dequantises, buffer in ((False, 0), (True, 96 * 64 * (4 + 12))):  # 3 rows are padded to 4
        where = {"is_first": True, "is_last": True, "dequantises": dequantises}
        assert workspace_bytes(wide, WORKLOAD, 3, 2, 4, **where) == 4 * (100_000 + 2 * 64) * 4 + buffer


def test_a_stage_is_the_sum_of_its_layers_and_only_pays_for_dequantising_what_is_quantised() -> None:
    four = Choice(4, 64)
    plain = stage_memory(MODEL, WORKLOAD, 3, 2, [UNQUANTISED] * 2, 4, embedding=UNQUANTISED, head=None)
    mixed = stage_memory(MODEL, WORKLOAD, 3, 2, [UNQUANTISED, four], 4, embedding=UNQUANTISED, head=None)
    assert plain.weights == 2 * decoder_layer_bytes(MODEL, UNQUANTISED, 4) + 100 * 64 * 4
    assert plain.weights - mixed.weights == decoder_layer_bytes(MODEL, UNQUANTISED, 4) - decoder_layer_bytes(
        MODEL, four, 4
    )
    assert plain.kv_cache == mixed.kv_cache == 2 * kv_cache_bytes(MODEL, WORKLOAD, 4)
    for stage, used in ((plain, 0), (mixed, 1)):
        asked = stage.weights + stage.kv_cache + workspace(3, 2, is_last=False, dequantises=used > 0)
        assert asked < stage.total == with_margin(asked) <= 1.01 * asked + 1


def test_a_budget_without_its_margin_is_filled_to_the_byte() -> None:
    for budget in (*range(1, 500), 2**30, 560 * 2**20):
        most = without_margin(budget)
        assert with_margin(most) <= budget < with_margin(most + 1)


def test_a_quantised_head_needs_the_buffer_and_a_quantised_embedding_does_not() -> None:
    eight = Choice(8, 64)
    for embedding, head in ((eight, UNQUANTISED), (UNQUANTISED, eight)):
        stage = stage_memory(MODEL, WORKLOAD, 3, 2, [UNQUANTISED], 4, embedding=embedding, head=head)
        used = without_margin(stage.total) - stage.weights - stage.kv_cache
        assert used == workspace(3, 2, dequantises=head.is_quantised)


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_a_head_of_any_vocabulary_takes_no_larger_buffer_than_a_decoder_layer(config: dict[str, object]) -> None:
    spec = ModelSpec.from_config(config | {"vocab_size": 1000}, "here")
    assert spec.head_block_rows % 32 == 0
    most = max(linear.out_features * linear.in_features for linear in spec.linears.values())
    assert spec.head_block_rows * spec.embedding_size <= most
    assert dequantise_bytes(spec, 4) == dequantise_bytes(replace(spec, vocab_size=10**6), 4)


def test_the_blocks_are_those_of_the_runtime() -> None:
    assert {4: BLOCK_WEIGHTS["cpu"], 2: BLOCK_WEIGHTS["cuda"]} == DEQUANTISE_BLOCK_WEIGHTS
    assert ATTENTION_BLOCK_TOKENS == QUERY_BLOCK
    assert row_block() == ROW_BLOCK
    assert ZEROS_PER_BLOCK == CODES_PER_BLOCK


@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("choice", [UNQUANTISED, Choice(3, 32), Choice(8, 64)])
@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_every_family_takes_the_bytes_that_its_modules_have(
    config: dict[str, object], choice: Choice, element_bytes: int
) -> None:
    spec = ModelSpec.from_config(config, "here")
    embedding, *decoders, head = layers_of(spec)

    def num_bytes(module: torch.nn.Module) -> int:
        parameters = sum(p.numel() for p in module.parameters()) * element_bytes
        return parameters + sum(buffer.nbytes for buffer in module.buffers())

    with torch.device("meta"):
        layer, first, last = decoders[0].build(choice), embedding.build(choice), head.build(choice)
    assert decoder_layer_bytes(spec, choice, element_bytes) == num_bytes(layer)
    assert end_layer_bytes(spec, choice, None, element_bytes) == num_bytes(first)
    assert end_layer_bytes(spec, None, choice, element_bytes) == num_bytes(last)
    is_shared = spec.tie_word_embeddings and choice == UNQUANTISED
    shared = is_shared * spec.vocab_size * spec.embedding_size * element_bytes
    assert end_layer_bytes(spec, choice, choice, element_bytes) == num_bytes(first) + num_bytes(last) - shared
