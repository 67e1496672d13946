"""A sequence's numbers, to the last bit, do not depend on who shares its micro-batch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.spec import Phase
from tests.tiny_model import BLOOM, OPT, write_tiny_model

PROMPT_LENGTHS = (5, 17, 1, 30, 70, 2, 63, 64)
SHAPES = {
    "odd": {},
    "demo": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "vocab_size": 2048,
        "num_hidden_layers": 2,
    },
    "window": {"model_type": "mistral", "sliding_window": 20},
    "qwen3": {"model_type": "qwen3"},
    "opt_350m": {"family": OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "bloom": {"family": BLOOM},
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sequence_alone_and_in_a_batch_has_equal_logits(shape: str, threads: int, tmp_path: Path) -> None:
    model = single_process_model(ModelFolder(write_tiny_model(tmp_path, **SHAPES[shape])))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(99, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    together = torch.stack(list(model.greedy_logits(prompts, 12)), 1)
    for number, prompt in enumerate(prompts):
        alone = torch.stack(list(model.greedy_logits([prompt], 12)), 1)
        assert torch.equal(alone[0], together[number]), f"prompt of {len(prompt)} tokens on {threads} threads"


def test_slots_in_any_order_with_old_entries_change_nothing(tmp_path: Path) -> None:
    model = single_process_model(ModelFolder(write_tiny_model(tmp_path)))
    prompts = [[4, 8, 15], [16, 23], [42, 7, 1, 9]]
    expected = model.generate_greedy(prompts, 8)
    assert _generate_in_slots(model, prompts, (5, 0, 3), 8) == expected


@torch.inference_mode()
def _generate_in_slots(
    model: LocalModel, prompts: list[list[int]], slots: tuple[int, ...], max_new_tokens: int
) -> list[list[int]]:
    spec = model.spec
    cache = KVCache(range(spec.num_hidden_layers), 6, 40, spec.num_key_value_heads, spec.head_dim)
    for tensors in (cache.keys, cache.values):
        for tensor in tensors.values():
            tensor.normal_()
    texts = [list(prompt) for prompt in prompts]
    batch = MicroBatch(Phase.PREFILL, slots, (0,) * len(slots), tuple(map(len, prompts)))
    token_ids = torch.tensor([token for prompt in prompts for token in prompt])
    for _ in range(max_new_tokens):
        hidden = pad_rows(token_ids)
        for layer in model.layers[:-1]:
            hidden = layer(hidden, batch, cache)
        logits = model.layers[-1](pad_rows(hidden[batch.last_rows]), batch, cache)[: len(slots)]
        token_ids = logits.argmax(-1)
        for text, token in zip(texts, token_ids.tolist(), strict=True):
            text.append(token)
        batch = MicroBatch(Phase.DECODE, slots, tuple(len(text) - 1 for text in texts), (1,) * len(slots))
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_in_two_chunks_gives_the_logits_of_one(shape: str, tmp_path: Path) -> None:
    model = single_process_model(ModelFolder(write_tiny_model(tmp_path, **SHAPES[shape])))
    spec = model.spec
    token_ids = torch.randint(99, (20,), generator=torch.Generator().manual_seed(1))
    whole = model.logits(token_ids[None])[0]
    cache = KVCache(range(spec.num_hidden_layers), 1, 20, spec.num_key_value_heads, spec.head_dim)
    with torch.inference_mode():
        for first, last in ((0, 13), (13, 20)):
            batch = MicroBatch(Phase.PREFILL, (0,), (first,), (last - first,))
            hidden = pad_rows(token_ids[first:last])
            for layer in model.layers:
                hidden = layer(hidden, batch, cache)
            torch.testing.assert_close(hidden[: last - first], whole[first:last], rtol=1e-4, atol=1e-4)
