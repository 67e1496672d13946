from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from tests.greedy import assert_same_greedy_tokens
from tests.models.stories260k import decode, stories_folder
from tests.models.variants import VARIANTS
from tests.tiny_model import write_tiny_model


def random_prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (5, 17, 1, 70)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, **VARIANTS[variant]))
    prompts = random_prompts(folder.spec.vocab_size)
    ours = single_process_model(folder).generate_greedy(prompts, 24)
    assert len({token for tokens in ours for token in tokens}) > 5, "a model that repeats itself tests nothing"
    assert_same_greedy_tokens(ours, AutoModelForCausalLM.from_pretrained(tmp_path).eval(), prompts)


def test_the_greedy_assertion_notices_a_wrong_token(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path))
    ours = single_process_model(folder).generate_greedy([[1, 2, 3]], 8)
    ours[0][5] = (ours[0][5] + 1) % folder.spec.vocab_size
    with pytest.raises(AssertionError, match="new token"):
        assert_same_greedy_tokens(ours, AutoModelForCausalLM.from_pretrained(tmp_path).eval(), [[1, 2, 3]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_whole_windows_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, **VARIANTS[variant]))
    windows = torch.randint(99, (3, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(windows).logits
    torch.testing.assert_close(single_process_model(folder).logits(windows), expected, rtol=1e-4, atol=1e-4)


def test_the_trained_model_tells_its_story(tmp_path: Path) -> None:
    folder = ModelFolder(stories_folder(tmp_path))
    prompts = [[1], [1, 403, 407], [1, 380]]
    ours = single_process_model(folder).generate_greedy(prompts, 60)
    assert decode(ours[0]).startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
    assert_same_greedy_tokens(ours, AutoModelForCausalLM.from_pretrained(tmp_path).eval(), prompts)
