"""A checkpoint that somebody else quantised, over a pipeline: its maker's tokens, from its own tensors."""

from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import Workload
from tests.checkpoint import auto_gptq_model
from tests.greedy import assert_same_greedy_tokens
from tests.pipeline.running import Case, Request, plan_of, run_pipeline
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.processes, pytest.mark.timeout(280)]

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 4}
PROMPTS = [(1, 2, 3), (5, 8), tuple(range(40))]
NEW_TOKENS = 20


def test_an_imported_checkpoint_gives_its_makers_tokens_over_three_stages(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = write_tiny_model(tmp_path / "model", dtype=torch.float16, tie_word_embeddings=True, **SHAPE)
    made = {"bits": 4, "group_size": 32, "act_order": True, "symmetric": False}
    maker = auto_gptq_model.make(model, tmp_path / "gptq", **made)
    stored = ModelFolder(tmp_path / "gptq").spec.stored_choices
    plan = plan_of(3, Workload(len(PROMPTS), 40, NEW_TOKENS), (2, 1), stored)
    requests = [Request(str(number), prompt, NEW_TOKENS) for number, prompt in enumerate(PROMPTS)]
    ran = run_pipeline(3, [Case("imported", plan, tmp_path / "gptq", [requests])], tmp_path, deadline_s=220)
    assert ran["imported"].errors == {}
    (batch,) = ran["imported"].batches
    assert_same_greedy_tokens([batch["tokens"][request.id] for request in requests], maker, PROMPTS)
