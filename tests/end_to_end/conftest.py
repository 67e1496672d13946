"""A tiny model, its plan over three emulated devices and its quantised layers, made once; a folder for each run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.local_model import LocalModel, single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.spec import UNQUANTISED, Choice, Device, Plan, RunConfig, StagePlan, Workload
from tests.end_to_end.running import Run
from tests.tiny_model import write_tiny_model

DECODERS = (Choice(3, 32), UNQUANTISED, Choice(8, 32), Choice(4, 32))
HOSTFILE = "localhost slots=3  # gpu=cpu slowdown=1,1.5,2 memory=32MiB threads=1\n"
CONFIG = """
[model]
path = "{model}"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 20
new_tokens = 24
[paths]
work = "{path}"
"""


class Prepared:
    """What all runs share: `config` with its `plan` and checkpoint, and the `model` to compare with."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        folder = ModelFolder(
            write_tiny_model(path / "tiny", with_tokenizer=True, num_hidden_layers=4, tie_word_embeddings=True)
        )
        (path / "hostfile").write_text(HOSTFILE)
        self.config_text = CONFIG.format(model=folder.path, path=path)
        self.config = path / "run.toml"
        self.config.write_text(self.config_text)
        (folder.path / "calibration.txt").write_text("A quick brown fox. " * 400)
        windows = CalibrationWindows.from_text(folder, folder.path / "calibration.txt")
        shards = quantise_layers(folder, enumerate(DECODERS), windows, RunConfig.load(self.config).checkpoint)
        self.model: LocalModel = single_process_model(folder, DECODERS, shards, dequantised=True)
        self.vocab_size = folder.spec.vocab_size
        self.plan = path / "by-hand.json"
        devices = tuple(Device("localhost", slot, "cpu", 32 * 2**20, 1 + slot / 2) for slot in range(3))
        layers = (UNQUANTISED, *DECODERS, UNQUANTISED)
        stages = tuple(
            StagePlan(device.name, part)
            for device, part in zip(devices, (layers[:3], layers[3:4], layers[4:]), strict=True)
        )
        facts = {"path": str(folder.path), "digest": folder.digest, "num_hidden_layers": 4}
        Plan(facts, devices, Workload(4, 20, 24), stages, 2, 1).save(self.plan)

    def greedy(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """As one process would answer, up to the end of the text."""
        answers = []
        for tokens, limit in zip(self.model.generate_greedy(prompts, max(max_tokens)), max_tokens, strict=True):
            end = tokens.index(0) + 1 if 0 in tokens else len(tokens)
            answers.append(tokens[: min(end, limit)])
        return answers


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    try:
        yield started
    finally:
        started.clean_up()
