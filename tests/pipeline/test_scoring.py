"""A prompt's own log-probabilities: over stages they are those of one process, and so is a text's perplexity."""

from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows, read_tokenised
from hetero_infer.measure.perplexity import measure_perplexity
from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message
from hetero_infer.pipeline.scoring import prompt_logprobs
from hetero_infer.spec import UNQUANTISED, Choice, Phase, Workload
from hetero_infer.spec.evaluation import Evaluation
from hetero_infer.spec.sampling import Sampling
from tests.pipeline.running import Case, Request, plan_of, run_pipeline
from tests.tiny_model import write_tiny_model

ASKS = Sampling(prompt_logprobs=True)
CHOICES, ENDS = (Choice(3, 32), UNQUANTISED, Choice(8, 32), Choice(4, 32)), (UNQUANTISED, Choice(8, 32))
CONTEXT, STRIDE, BATCH = 30, 11, 5


def test_those_who_ask_get_a_number_for_each_token_but_the_first() -> None:
    """The head is the identity: hidden states are logits."""
    lengths = (4, 3, 1)
    rows = torch.randn(sum(lengths), 10, generator=torch.Generator().manual_seed(0))
    token_ids = torch.tensor([7, 3, 9, 0, 1, 2, 3, 5], dtype=torch.int32)
    batch = MicroBatch(Phase.PREFILL, (4, 0, 2), (0, 0, 0), lengths)
    asked_at_once = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        asked_at_once.append(len(hidden))
        return hidden

    scored = prompt_logprobs(Message(0, batch, rows, (ASKS, Sampling(), ASKS), token_ids), logits, rows_at_once=2)
    expected = rows.double().log_softmax(-1)
    assert scored[0] == pytest.approx([float(expected[row, token]) for row, token in enumerate((3, 9, 0))], abs=1e-6)
    assert scored[1:] == [(), ()]  # one did not ask, one has nothing to predict
    assert max(asked_at_once) == 2


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_text_has_over_two_stages_the_perplexity_of_one_process(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = ModelFolder(write_tiny_model(tmp_path / "tiny", with_tokenizer=True, num_hidden_layers=4))
    windows = CalibrationWindows(torch.randint(2048, (4, 32), generator=torch.Generator().manual_seed(0)))
    wanted = [*enumerate(CHOICES), ("head", ENDS[1])]
    shards = quantise_layers(folder, wanted, windows, tmp_path / "checkpoint")
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night, and a café was all that we could see of the town. " * 4)

    evaluation = Evaluation.of(read_tokenised(folder, text), CONTEXT, CONTEXT, STRIDE)
    prompts = [evaluation.text.tokens[window.start : window.stop] for window in evaluation.windows]
    scored = [Request(str(number), prompt, 1, ASKS) for number, prompt in enumerate(prompts)]
    speaking = [Request(f"says {number}", prompts[number], 6) for number in range(2)]
    both = [Request("says and asks", prompts[0], 6, ASKS), *speaking, scored[1]]
    batches = [*(scored[first : first + BATCH] for first in range(0, len(scored), BATCH)), speaking, both]
    plan = plan_of(2, Workload(BATCH, CONTEXT, 6), (3, 2), CHOICES, ends=ENDS)
    case = Case("scored", plan, folder.path, batches, shards.path)
    *ran, alone, mixed = run_pipeline(2, [case], tmp_path, deadline_s=90)["scored"].batches

    found = {number: logprobs for batch in ran for number, logprobs in batch["prompt_logprobs"].items()}
    nats = [
        [-logprob for logprob in found[str(number)][window.first_scored - window.start - 1 :]]
        for number, window in enumerate(evaluation.windows)
    ]
    model = single_process_model(folder, CHOICES, shards, ends=ENDS)
    expected = measure_perplexity(model, folder, text, CONTEXT, STRIDE)
    assert evaluation.perplexity(nats).nats_per_token == pytest.approx(expected.nats_per_token, abs=1e-6)

    assert mixed["prompt_logprobs"] == {"says and asks": found["0"], "says 0": [], "says 1": [], "1": found["1"]}
    assert {name: mixed["tokens"][name] for name in alone["tokens"]} == alone["tokens"]
    assert mixed["tokens"]["says and asks"] == alone["tokens"]["says 0"]
