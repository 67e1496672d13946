"""Perplexity of a text under a model in one process: the quality that a plan is held to."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from hetero_infer.checkpoint.local_model import LocalModel
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import read_tokenised
from hetero_infer.spec.evaluation import Evaluation, Perplexity


def measure_perplexity(
    model: LocalModel,
    folder: ModelFolder,
    text: Path,
    context_tokens: int | None = None,
    stride_tokens: int | None = None,
    progress: bool = False,
) -> Perplexity:
    """Of the whole text, window after window (`Evaluation`); `folder` has the tokenizer."""
    most_tokens = model.spec.max_position_embeddings
    evaluation = Evaluation.of(read_tokenised(folder, text), most_tokens, context_tokens, stride_tokens)
    return evaluation.perplexity(_nats(model, evaluation, progress))


def _nats(model: LocalModel, evaluation: Evaluation, progress: bool) -> Iterator[list[float]]:
    """Of each window's scored tokens."""
    tokens = torch.tensor(evaluation.text.tokens)
    for window in tqdm(evaluation.windows, desc="evaluate", unit="window", disable=None if progress else True):
        scored = slice(window.first_scored - window.start - 1, -1)  # each is predicted at the token before it
        logits = model.logits(tokens[None, window.start : window.stop])[0, scored].float()
        targets = tokens[window.first_scored : window.stop].to(model.device)
        yield cross_entropy(logits, targets, reduction="none").tolist()


def mean_loss(model: LocalModel, windows: torch.Tensor) -> float:
    """Nats per predicted token over `[windows, tokens]`, one window at a time."""
    losses = [
        cross_entropy(model.logits(window[None])[0, :-1].float(), window[1:].to(model.device)).item()
        for window in windows
    ]
    return sum(losses) / len(losses)
