"""Agreement of a model's greedy tokens with the unquantised model's answers to the same prompts.

In: prompts, and the answers that one model gives. Out: how often another would have gone on in the same way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hetero_infer.checkpoint.local_model import LocalModel
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import read_tokenised
from hetero_infer.spec import InputError

NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 32, 64, 64  # of a text
PROMPTS_AT_ONCE = 8

Prompt = tuple[tuple[int, ...], int]  # its tokens, and how many may come


@dataclass(frozen=True)
class Agreement:
    """Over the tokens of all answers. `same_tokens` are those that the model finds likeliest, too, given the prompt and
    the answer up to there; `common_tokens` those before the first other one, which are also what two free answers have
    in common."""

    answers: int
    answer_tokens: int
    same_tokens: int
    common_tokens: int
    same_answers: int

    @property
    def same_share(self) -> float:
        return self.same_tokens / self.answer_tokens

    @property
    def mean_common_tokens(self) -> float:
        return self.common_tokens / self.answers

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"same_share": self.same_share, "mean_common_tokens": self.mean_common_tokens}


def prompts_of_text(folder: ModelFolder, text: Path) -> list[Prompt]:
    """Pieces spread evenly over a text, fewer where they and their answers would overlap."""
    tokens = read_tokenised(folder, text).tokens
    if not tokens:
        raise InputError(f"text {text}: it is empty, and prompts are cut from it")
    most_tokens = folder.spec.max_position_embeddings
    prompt_tokens = min(PROMPT_TOKENS, len(tokens), most_tokens // 2)
    answer_tokens = min(ANSWER_TOKENS, most_tokens - prompt_tokens)
    count = min(NUM_PROMPTS, max(1, len(tokens) // (prompt_tokens + answer_tokens)))
    starts = [place * len(tokens) // count for place in range(count)]
    return [(tokens[start : start + prompt_tokens], answer_tokens) for start in starts]


def greedy_answers(model: LocalModel, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Each ends with the model's end token, or when all that may come have."""
    answers: list[list[int]] = []
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        together = prompts[first : first + PROMPTS_AT_ONCE]
        said = model.generate_greedy([tokens for tokens, _ in together], max(count for _, count in together))
        answers += [_ended(tokens[:count], model) for tokens, (_, count) in zip(said, together, strict=True)]
    return answers


def _ended(tokens: list[int], model: LocalModel) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in model.spec.eos_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


def measure_agreement(model: LocalModel, prompts: Sequence[Prompt], answers: Iterable[Sequence[int]]) -> Agreement:
    """Of `model` with the `answers` of another, by one pass over each prompt with its answer."""
    counts = []
    for (prompt, _), answer in zip(prompts, answers, strict=True):
        logits = model.logits(torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
        same = [ours == theirs for ours, theirs in zip(logits.argmax(-1).tolist(), answer, strict=True)]
        common = same.index(False) if False in same else len(same)
        counts.append((1, len(same), sum(same), common, all(same)))
    return Agreement(*(sum(column) for column in zip(*counts, strict=True)))
