"""What the runtime owes: over any number of processes, the tokens are those of the model in one process."""

import itertools
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.spec import UNQUANTISED, Choice, Workload
from hetero_infer.spec.config import DEMO_MODEL
from hetero_infer.spec.sampling import Sampling
from tests.greedy import assert_same_greedy_tokens
from tests.models.stories260k import SOURCE as STORIES
from tests.models.stories260k import convert
from tests.models.variants import VARIANTS
from tests.pipeline.running import Case, Ran, Request, plan_of, run_pipeline
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.processes, pytest.mark.timeout(280)]

STAGES = (1, 2, 3, 4)
SIZES = ((1, 1), (2, 4), (3, 2), (4, 4), (7, 3))  # of prefill and decode micro-batches
NEW_TOKENS = 24
PROMPT_TOKENS = (5, 17, 1, 30, 50, 2, 9)
WORKLOAD = Workload(len(PROMPT_TOKENS), max(PROMPT_TOKENS), NEW_TOKENS)
TINY = {
    "gqa_tied": {"num_hidden_layers": 4, "tie_word_embeddings": True, "head_dim": 12},
    "mha_untied": {"num_hidden_layers": 5, "num_key_value_heads": 4, "head_dim": 12},
    "wide_heads": {"num_hidden_layers": 4, "head_dim": 20},
}
REAL = ("demo", "stories260k")
MIXED = (Choice(3, 32), UNQUANTISED, Choice(8, 32), Choice(4, 32))
WHOLE = (UNQUANTISED, UNQUANTISED)
ENDS = {  # by model, embedding and head
    "gqa_tied": (Choice(8, 32), Choice(4, 32)),
    "mha_untied": (UNQUANTISED, Choice(3, 32)),
    "opt": (Choice(4, 32), Choice(8, 32)),
    "opt_350m": (Choice(3, 32), UNQUANTISED),
    "bloom": (Choice(4, 32), Choice(3, 32)),
}
FAMILIES = {name: fields for name, fields in VARIANTS.items() if not fields.keys() & {"num_hidden_layers", "n_layer"}}
AT_ALL_SIZES = (*TINY, "opt", "bloom", "mistral_window")
MODELS_AND_SIZES = [
    *itertools.product(AT_ALL_SIZES, SIZES),
    *((model, (3, 2)) for model in (*REAL, *FAMILIES) if model not in AT_ALL_SIZES),
]


def prompts_for(vocab_size: int) -> list[tuple[int, ...]]:
    rng = random.Random(vocab_size)
    return [tuple(rng.randrange(vocab_size) for _ in range(length)) for length in PROMPT_TOKENS]


def requests(prompts: list[tuple[int, ...]], **fields: object) -> list[Request]:
    return [Request(str(i), prompt, NEW_TOKENS, **fields) for i, prompt in enumerate(prompts)]


class Models:
    """Folders, and the tokens they should give."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tiny = TINY | FAMILIES
        self.folders = {name: write_tiny_model(path / name, seed, **tiny[name]) for seed, name in enumerate(tiny)}
        self.folders["demo"] = DEMO_MODEL
        if (STORIES / "stories260K.bin").exists():
            self.folders["stories260k"] = convert((STORIES / "stories260K.bin").read_bytes(), path / "stories260k")
        self.reference = cache(self._reference)
        self.expected = cache(self._expected)
        self.quantised = cache(self._quantised)

    def prompts(self, name: str) -> list[tuple[int, ...]]:
        return prompts_for(ModelFolder(self.folders[name]).spec.vocab_size)

    def _reference(self, name: str) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folders[name], torch_dtype=torch.float32).eval()

    def _expected(self, name: str) -> list[list[int]]:
        """Those of transformers."""
        texts = []
        for prompt in self.prompts(name):
            ids = torch.tensor([prompt])
            texts += (
                self.reference(name)
                .generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )[:, len(prompt) :]
                .tolist()
            )
        return texts

    def _quantised(
        self, name: str, decoders: tuple[Choice, ...], ends: tuple[Choice, Choice]
    ) -> tuple[Path, LocalModel]:
        """A checkpoint folder with these layers of a model, and that model in one process with plain matrices."""
        folder = ModelFolder(self.folders[name])
        windows = CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))
        wanted = [*enumerate(decoders), ("embedding", ends[0]), ("head", ends[1])]
        shards = quantise_layers(folder, wanted, windows, self.path / "checkpoint")
        return shards.path, single_process_model(folder, decoders, shards, dequantised=True, ends=ends)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ran(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Ran]]:
    """Every case over so many stages, run once."""

    @cache
    def run(stages: int) -> dict[str, Ran]:
        cases = list(cases_of(stages, models))
        return run_pipeline(stages, cases, tmp_path_factory.mktemp(f"stages-{stages}"), deadline_s=220)

    return run


# The cases.


def cases_of(stages: int, models: Models) -> list[Case]:
    def case(
        name: str, model: str, sizes: tuple[int, int], batches: list[list[Request]], memory_bytes: int = 2**30
    ) -> Case:
        folder = models.folders[model]
        choices = [UNQUANTISED] * ModelFolder(folder).spec.num_hidden_layers
        return Case(name, plan_of(stages, WORKLOAD, sizes, choices, memory_bytes), folder, batches)

    cases = [
        case(f"{model} {sizes}", model, sizes, [requests(models.prompts(model))])
        for model, sizes in MODELS_AND_SIZES
        if model in models.folders
    ]
    prompts = models.prompts("wide_heads")
    sampled, shuffled = sampled_requests(prompts), random.Random(0).sample(range(7), 7)
    cases += [
        case("early ends", "wide_heads", (3, 2), [early_ends(prompts), requests(prompts), early_ends(prompts)]),
        case("all stop at once", "wide_heads", (2, 4), [requests(prompts, stop_ids=tuple(range(99)))]),
        case("one token each", "wide_heads", (3, 2), [[Request(r.id, r.prompt, 1) for r in requests(prompts)]]),
        case("cancelled", "wide_heads", (3, 2), [cancelled_requests(prompts), requests(prompts)]),
        case("few", "wide_heads", (4, 4), [requests(prompts)[:3], requests(prompts)[4:]]),
        case(
            "sampled",
            "wide_heads",
            (3, 4),
            [sampled, [sampled[i] for i in shuffled], *[[request] for request in sampled]],
        ),
        case("too large", "wide_heads", (3, 2), [], memory_bytes=100_000),
    ]
    return [*cases, *quantised_cases(stages, models)]


def quantised_cases(stages: int, models: Models) -> list[Case]:
    def case(name: str, model: str, decoders: tuple[Choice, ...], ends: tuple[Choice, Choice]) -> Case:
        plan = plan_of(stages, WORKLOAD, (3, 2), decoders, ends=ends)
        checkpoint, _ = models.quantised(model, decoders, ends)
        return Case(name, plan, models.folders[model], [requests(models.prompts(model))], checkpoint)

    of_ends = [case(f"ends of {model}", model, decoders_of(model, models), ends) for model, ends in ENDS.items()]
    return [case("mixed bits", "gqa_tied", MIXED, WHOLE), *of_ends]


def decoders_of(model: str, models: Models) -> tuple[Choice, ...]:
    """All but the first unquantised, so that ends are quantised beside both."""
    return (Choice(8, 32), *[UNQUANTISED] * (ModelFolder(models.folders[model]).spec.num_hidden_layers - 1))


def early_ends(prompts: list[tuple[int, ...]]) -> list[Request]:
    limits = (3, 24, 1, 7, 9, 24, 2)
    return [
        Request(str(i), prompt, limit, stop_ids=tuple(range(10)))
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def cancelled_requests(prompts: list[tuple[int, ...]]) -> list[Request]:
    """Two share a decode micro-batch, which retires before the others."""
    after = (-1, -1, 3, 5, 1, -1, -1)
    return [
        Request(str(i), prompt, NEW_TOKENS, cancel_after=count)
        for i, (prompt, count) in enumerate(zip(prompts, after, strict=True))
    ]


def sampled_requests(prompts: list[tuple[int, ...]]) -> list[Request]:
    """Greedy, penalised, warm, hot, cut off in every way; seeds that 32 bits cannot hold."""
    how = [
        {"logprobs": 3},
        {"repetition_penalty": 1.5},
        {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.7, "frequency_penalty": 1.1, "logprobs": 0},
        {"temperature": 1.7, "top_p": 0.5, "logprobs": 20},
        {"temperature": 0.1},
        {"temperature": 1.0, "top_k": 7, "min_p": 0.05},
        {"temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": -0.5},
    ]
    return [
        Request(str(i), prompt, NEW_TOKENS, Sampling(seed=2**40 + i, **fields))
        for i, (prompt, fields) in enumerate(zip(prompts, how, strict=True))
    ]


# What holds for them.


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize(("model", "sizes"), MODELS_AND_SIZES)
def test_a_pipeline_gives_the_tokens_of_transformers(
    stages: int, model: str, sizes: tuple[int, int], models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    if model not in models.folders:
        pytest.skip(f"{model}: its weights are not on this machine")
    (batch,) = ran(stages)[f"{model} {sizes}"].batches
    tokens = list(batch["tokens"].values())
    assert [len(new) for new in tokens] == [NEW_TOKENS] * 7
    if tokens != models.expected(model):  # then only where two logits are as good as equal
        assert_same_greedy_tokens(tokens, models.reference(model), models.prompts(model))


@pytest.mark.parametrize("stages", STAGES)
def test_mixed_bits_over_stages_give_the_tokens_of_one_process(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    (batch,) = ran(stages)["mixed bits"].batches
    _, model = models.quantised("gqa_tied", MIXED, WHOLE)
    tokens = list(batch["tokens"].values())
    assert tokens == model.generate_greedy(models.prompts("gqa_tied"), NEW_TOKENS)
    assert tokens != models.expected("gqa_tied")  # quantised they were


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("model", ENDS)
def test_quantised_ends_give_the_tokens_of_one_process(
    model: str, stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    (batch,) = ran(stages)[f"ends of {model}"].batches
    prompts, decoders = models.prompts(model), decoders_of(model, models)
    (_, plain), (_, whole) = (models.quantised(model, decoders, ends) for ends in (ENDS[model], WHOLE))
    tokens = list(batch["tokens"].values())
    assert tokens == plain.generate_greedy(prompts, NEW_TOKENS)
    assert tokens != whole.generate_greedy(prompts, NEW_TOKENS)  # quantised they were


@pytest.mark.parametrize("stages", STAGES)
def test_a_sequence_ends_at_its_stop_token_or_limit_and_the_others_go_on(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    first, whole, again = ran(stages)["early ends"].batches
    asked = early_ends(models.prompts("wide_heads"))
    for request in asked:
        tokens = whole["tokens"][request.id][: request.max_tokens]
        stop = next((i for i, token in enumerate(tokens) if token in request.stop_ids), None)
        expected = tokens if stop is None else tokens[: stop + 1]
        assert first["tokens"][request.id] == again["tokens"][request.id] == expected
        assert first["reasons"][request.id] == ("length" if stop is None else "stop")
    assert {"stop", "length"} == set(first["reasons"].values())
    assert list(whole["tokens"].values()) == models.expected("wide_heads")  # in slots that the first batch had used


@pytest.mark.parametrize("stages", STAGES)
def test_the_loop_ends_when_every_sequence_has(stages: int, ran: Callable[[int], dict[str, Ran]]) -> None:
    for name in ("all stop at once", "one token each"):
        (batch,) = ran(stages)[name].batches
        assert [len(tokens) for tokens in batch["tokens"].values()] == [1] * 7
    assert set(ran(stages)["all stop at once"].batches[0]["reasons"].values()) == {"stop"}


@pytest.mark.parametrize("stages", STAGES)
def test_every_token_is_reported_once_and_in_order(stages: int, ran: Callable[[int], dict[str, Ran]]) -> None:
    for case in ran(stages).values():
        for batch in case.batches:
            for request, tokens in batch["tokens"].items():
                assert [n for name, n in batch["called"] if name == request] == list(range(1, len(tokens) + 1))
            assert batch["seconds"][0] > 0 and batch["seconds"][1] >= 0


@pytest.mark.parametrize("stages", STAGES)
def test_a_batch_may_be_smaller_than_the_plan_s(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    first, rest = (list(batch["tokens"].values()) for batch in ran(stages)["few"].batches)
    expected = models.expected("wide_heads")
    assert (first, rest) == (expected[:3], expected[4:])


@pytest.mark.parametrize("stages", STAGES)
def test_a_sequence_alone_gets_the_tokens_it_gets_in_any_batch(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    for what in ("tokens", "logprobs"):
        together, shuffled, *alone = (batch[what] for batch in ran(stages)["sampled"].batches)
        assert shuffled == together
        assert {request: said for batch in alone for request, said in batch.items()} == together
        assert together == ran(1)["sampled"].batches[0][what]  # however many stages
    tokens, expected = ran(stages)["sampled"].batches[0]["tokens"], models.expected("wide_heads")
    assert tokens["0"] == expected[0]  # greedy
    assert all(tokens[str(i)] != expected[i] for i in (1, 2, 3, 5, 6))  # penalised, or warm enough to differ


@pytest.mark.parametrize("stages", STAGES)
def test_logprobs_come_with_the_tokens_of_those_who_asked(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    batch = ran(stages)["sampled"].batches[0]
    for request in sampled_requests(models.prompts("wide_heads")):
        tokens, logprobs = batch["tokens"][request.id], batch["logprobs"][request.id]
        if request.sampling.logprobs is None:
            assert logprobs == [None] * NEW_TOKENS
            continue
        assert [pairs[0][0] for pairs in logprobs] == tokens
        assert {len(pairs) for pairs in logprobs} == {1 + request.sampling.logprobs}
        text = torch.tensor([[*request.prompt, *tokens[:-1]]])
        with torch.no_grad():
            theirs = models.reference("wide_heads")(text).logits[0, len(request.prompt) - 1 :].log_softmax(-1)
        for row, pairs in zip(theirs, logprobs, strict=True):
            for token, logprob in pairs:
                assert logprob == pytest.approx(float(row[token]), abs=1e-3)
            likeliest = row.topk(request.sampling.logprobs).values
            assert [logprob for _, logprob in pairs[1:]] == pytest.approx(likeliest.tolist(), abs=1e-3)


@pytest.mark.parametrize("stages", STAGES)
def test_a_cancelled_sequence_gets_no_more_tokens_and_the_others_theirs(
    stages: int, models: Models, ran: Callable[[int], dict[str, Ran]]
) -> None:
    first, again = ran(stages)["cancelled"].batches
    expected = models.expected("wide_heads")
    for request, whole in zip(cancelled_requests(models.prompts("wide_heads")), expected, strict=True):
        assert first["tokens"][request.id] == (whole if request.cancel_after < 0 else whole[: request.cancel_after])
        assert first["reasons"][request.id] == ("length" if request.cancel_after < 0 else "cancelled")
    assert list(again["tokens"].values()) == expected


@pytest.mark.parametrize("stages", STAGES)
def test_a_stage_that_does_not_fit_says_where_and_by_how_much(
    stages: int, ran: Callable[[int], dict[str, Ran]]
) -> None:
    errors = ran(stages)["too large"].errors
    assert list(errors) == list(range(stages))
    for stage, error in errors.items():
        assert error.startswith(f"InfeasibleError: stage {stage} on localhost:{stage} holds ")
        assert " MiB and may use 0.1;" in error
