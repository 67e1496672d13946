"""How far a quantised model goes on as the unquantised one does."""

from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.agreement import Agreement, greedy_answers, measure_agreement, prompts_of_text
from hetero_infer.spec import Choice, InputError
from hetero_infer.spec.config import DEMO_MODEL
from tests.tiny_model import write_tiny_model

PROMPTS = [((5, 17, 3), 12), ((44,), 12), ((9, 8, 7, 6, 5, 4, 3, 2, 1), 5), ((60, 61), 12)]


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def three_bits(folder: ModelFolder, tmp_path: Path) -> LocalModel:
    windows = CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))
    choices = [Choice(3, 32)] * 3
    return single_process_model(folder, choices, quantise_layers(folder, enumerate(choices), windows, tmp_path / "out"))


def test_a_model_agrees_with_itself(folder: ModelFolder) -> None:
    model = single_process_model(folder)
    answers = greedy_answers(model, PROMPTS)
    tokens = sum(map(len, answers))
    agreement = measure_agreement(model, PROMPTS, answers)
    assert agreement == Agreement(4, tokens, tokens, tokens, 4)
    assert agreement.same_share == 1


def test_a_model_of_three_bits_agrees_less_and_parts_where_its_own_answer_does(
    folder: ModelFolder, three_bits: LocalModel
) -> None:
    answers = greedy_answers(single_process_model(folder), PROMPTS)
    agreement = measure_agreement(three_bits, PROMPTS, answers)
    assert agreement.common_tokens < agreement.same_tokens < agreement.answer_tokens
    in_common = 0
    for theirs, ours in zip(answers, greedy_answers(three_bits, PROMPTS), strict=True):
        parted = (place for place, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other)
        in_common += next(parted, min(len(theirs), len(ours)))
    assert agreement.common_tokens == in_common


def test_an_answer_ends_with_the_end_token_or_when_all_that_may_come_have(folder: ModelFolder) -> None:
    model = single_process_model(folder)
    (whole,) = greedy_answers(model, [((5, 17, 3), 12)])
    assert len(whole) == 12
    end = whole[4]
    model.spec = folder_with_end(folder, end).spec
    (ended,) = greedy_answers(model, [((5, 17, 3), 12)])
    assert ended == whole[: whole.index(end) + 1] and len(ended) < 12


def folder_with_end(folder: ModelFolder, token: int) -> ModelFolder:
    return ModelFolder(write_tiny_model(folder.path.parent / "ending", eos_token_id=token))


def test_prompts_of_a_text_are_spread_over_it_and_have_room_for_their_answers(tmp_path: Path) -> None:
    folder = ModelFolder(write_tiny_model(tmp_path, with_tokenizer=True))
    prompts = prompts_of_text(folder, DEMO_MODEL / "heldout.txt")
    assert len(prompts) == 32 and {(len(tokens), count) for tokens, count in prompts} == {(64, 64)}
    assert len({tokens for tokens, _ in prompts}) == 32
    (tmp_path / "short.txt").write_text("She was quite")
    ((tokens, count),) = prompts_of_text(folder, tmp_path / "short.txt")
    assert 1 < len(tokens) < 10 and count == 64
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(InputError, match="it is empty, and prompts are cut from it"):
        prompts_of_text(folder, tmp_path / "short.txt")
