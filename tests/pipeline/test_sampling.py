"""A token depends on its own logits, tokens, seed and position; its distribution is the one that was asked for."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message
from hetero_infer.pipeline.sampling import Sampled, Sampler, Speaker, penalised, warped
from hetero_infer.pipeline.sampling import sample as sample_speakers
from hetero_infer.spec import InputError, Phase
from hetero_infer.spec.sampling import Sampling

# 0.001 quantile of chi-square from above, by degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 4: 18.47}


def random_logits(rows: int, vocabulary: int = 64, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def sample(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    return [choice.token for choice in sample_speakers(logits, list(map(Speaker, samplings)), positions)]


def test_greedy_takes_the_likeliest() -> None:
    logits = random_logits(5)
    assert sample(logits, [Sampling()] * 5, range(5)) == logits.argmax(-1).tolist()


def test_of_equal_logits_greedy_takes_the_first() -> None:
    logits = torch.zeros(3, 40)
    logits[0, [7, 3, 30]] = 1.0
    logits[1, [39, 38]] = 1.0
    assert sample(logits, [Sampling()] * 3, range(3)) == [3, 38, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_top_p_of_0_leaves_one_token(seed: int) -> None:
    logits = random_logits(4, seed=seed)
    samplings = [Sampling(5.0, 0.0, seed)] * 4
    assert sample(logits, samplings, range(4)) == logits.argmax(-1).tolist()
    assert sample(torch.zeros(1, 10), samplings[:1], [3]) == [0]  # also of equals


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 1e-320])
def test_hardly_any_temperature_is_greedy(temperature: float) -> None:
    logits = random_logits(20)
    assert sample(logits, [Sampling(temperature, 1.0, 1)] * 20, range(20)) == logits.argmax(-1).tolist()


def test_a_token_does_not_depend_on_its_row_or_on_the_others() -> None:
    logits = random_logits(6)
    samplings = [Sampling(), Sampling(1.0, 1.0, 5), Sampling(0.8, 0.9, 6), Sampling(2.0, 0.5, 7), *[Sampling(1.5)] * 2]
    positions = [4, 9, 30, 4, 7, 8]
    together = sample(logits, samplings, positions)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4], [3], [1, 1, 1]):
        tokens = sample(logits[order], [samplings[i] for i in order], [positions[i] for i in order])
        assert tokens == [together[i] for i in order]


def test_seeds_and_positions_give_other_tokens() -> None:
    logits = random_logits(1).expand(50, -1)
    of_seeds = sample(logits, [Sampling(3.0, 1.0, seed) for seed in range(50)], [3] * 50)
    of_positions = sample(logits, [Sampling(3.0, 1.0, 3)] * 50, range(50))
    assert len(set(of_seeds)) > 10 and len(set(of_positions)) > 10
    assert of_seeds != of_positions


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [(1.0, 1.0, 5), (2.0, 1.0, 5), (0.5, 1.0, 5), (1.0, 0.75, 3), (1.0, 0.69, 2), (2.0, 0.6, 3)],
)
def test_tokens_come_as_often_as_they_should(temperature: float, top_p: float, kept: int, vary: str) -> None:
    """`kept` likeliest tokens are the fewest that hold `top_p`."""
    count = 4000
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    shuffled = [3, 0, 4, 2, 1]
    logits = torch.empty(5)
    logits[shuffled] = weights.log()
    samplings = [Sampling(temperature, top_p, number if vary == "seed" else 11) for number in range(count)]
    positions = [17] * count if vary == "seed" else list(range(count))
    tokens = sample(logits.expand(count, -1), samplings, positions)
    seen = torch.bincount(torch.tensor(tokens), minlength=5)[shuffled]
    wanted = weights[:kept] ** (1 / temperature)
    wanted *= count / wanted.sum()
    assert not seen[kept:].any()
    assert ((seen[:kept] - wanted) ** 2 / wanted).sum() < CHI_SQUARE[kept - 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 1.1}, "top_p = 1.1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"top_k": -2}, "top_k = -2"),
        ({"min_p": 1.5}, "min_p = 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"presence_penalty": -2.5}, "presence_penalty = -2.5"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty = nan"),
        ({"logprobs": 21}, "logprobs = 21"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Sampling(**arguments)


# Against transformers.

PROMPT, SAID = [3, 7, 7, 20, 63], [7, 1, 1, 1, 40]


def processors_of(sampling: Sampling) -> LogitsProcessorList:
    """Those that `generate` makes of the same fields, in its order."""
    found: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    found.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        found.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(found)


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("temperature", [0.6, 1.9])
@pytest.mark.parametrize("top_k", [-1, 0, 1, 9, 64, 1000])
def test_logits_are_processed_as_by_transformers(repetition_penalty: float, temperature: float, top_k: int) -> None:
    for seed, (top_p, min_p) in enumerate(itertools.product((1.0, 0.9, 0.3), (0.0, 0.02, 0.5))):
        logits = random_logits(1, seed=seed)[0]
        sampling = Sampling(temperature, top_p, 0, top_k, min_p, repetition_penalty)
        ours = warped(penalised(logits.double(), Speaker(sampling, PROMPT, SAID)), sampling)
        theirs = processors_of(sampling)(torch.tensor([PROMPT + SAID]), logits[None])[0]
        assert torch.equal(ours.isinf(), theirs.isinf())
        shift = (theirs.double() - ours)[~ours.isinf()]  # ours are relative to the likeliest
        assert torch.allclose(shift, shift[0], atol=1e-5)


def test_greedy_honours_a_repetition_penalty_as_transformers_does() -> None:
    logits = random_logits(200)
    sampling = Sampling(repetition_penalty=1.8)
    theirs = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([PROMPT + SAID] * 200), logits.clone())
    speakers = [Speaker(sampling, PROMPT, SAID)] * 200
    tokens = [choice.token for choice in sample_speakers(logits, speakers, range(200))]
    assert tokens == theirs.argmax(-1).tolist() != logits.argmax(-1).tolist()


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    logits = random_logits(1)[0].double()
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    expected = logits.clone()
    expected[[7, 40]] -= 0.5 + 0.25
    expected[1] -= 0.5 + 3 * 0.25
    assert torch.equal(penalised(logits, Speaker(sampling, PROMPT, SAID)), expected)
    assert torch.equal(penalised(logits, Speaker(sampling, PROMPT, [])), logits)  # before the first token


def test_logprobs_are_the_models_own_and_its_token_comes_first() -> None:
    logits = random_logits(1)
    sampling = Sampling(temperature=5.0, seed=3, presence_penalty=2.0, logprobs=4)
    (choice,) = sample_speakers(logits, [Speaker(sampling, [], SAID)], [9])
    expected = logits[0].double().log_softmax(-1)
    tokens = [choice.token, *expected.topk(4).indices.tolist()]
    assert choice.logprobs == tuple((token, float(expected[token])) for token in tokens)
    assert sample_speakers(logits, [Speaker(Sampling())], [9])[0].logprobs is None


# What the last stage keeps.


def prefill(slots: tuple[int, ...], prompts: list[list[int]], samplings: list[Sampling]) -> Message:
    lengths = tuple(map(len, prompts))
    batch = MicroBatch(Phase.PREFILL, slots, (0,) * len(slots), lengths)
    token_ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32)
    return Message(0, batch, LOGITS.expand(len(slots), -1), tuple(samplings), token_ids)


def decode(slots: tuple[int, ...], past: tuple[int, ...]) -> Message:
    return Message(0, MicroBatch(Phase.DECODE, slots, past, (1,) * len(slots)), LOGITS.expand(len(slots), -1))


LOGITS = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
NEVER_AGAIN = Sampling(repetition_penalty=100)


def test_each_slot_remembers_its_own_prompt_and_tokens() -> None:
    sampler = Sampler()
    plain = Sampling()
    first = sampler.sample(prefill((4, 2, 0), [[1, 3], [0, 1], [2]], [NEVER_AGAIN, NEVER_AGAIN, plain]))
    assert first == [Sampled(0), Sampled(2), Sampled(0)]
    assert sampler.sample(decode((0, 4), (1, 2))) == [Sampled(0), Sampled(2)]
    assert sampler.sample(decode((2,), (2,))) == [Sampled(3)]


def test_a_slot_that_is_used_again_starts_anew() -> None:
    sampler = Sampler()
    sampler.sample(prefill((1,), [[0]], [NEVER_AGAIN]))
    assert sampler.sample(prefill((1,), [[3]], [NEVER_AGAIN])) == [Sampled(0)]
    assert sampler.sample(prefill((1,), [[3]], [Sampling()])) == [Sampled(0)]
    assert sampler.sample(decode((1,), (1,))) == [Sampled(0)]
