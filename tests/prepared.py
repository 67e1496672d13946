"""A tiny model with the files of a run: hostfile, config, plan by hand, batch; and what one process would answer."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.quantise import quantise_layers
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.spec import UNQUANTISED, Choice, Plan, RunConfig, StagePlan
from tests.tiny_model import write_tiny_model

DECODERS = (Choice(3, 32), UNQUANTISED, Choice(8, 32), Choice(4, 32))
CONFIG = """
[model]
path = "{model}"
[cluster]
hostfile = "{path}/hostfile"
[workload]
batch_size = 4
prompt_tokens = 20
new_tokens = 24
[quality]
max_perplexity_increase = 10.0
choices = [{{ bits = 4, group_size = 32 }}, {{ bits = 8, group_size = 32 }}]
[paths]
work = "{path}"
"""

_RNG = random.Random(0)
PROMPTS = [[_RNG.randrange(1, 2048) for _ in range(length)] for length in (3, 20, 1, 11, 7, 16, 2, 9, 4, 20)]
LIMITS = [24, 24, 5, 24, 1, 24, 24, 12, 24, 24]


@dataclass(frozen=True)
class RunFiles:
    """In one folder, which is also the run's `work`."""

    path: Path

    @property
    def hostfile(self) -> Path:
        return self.path / "hostfile"

    @property
    def config(self) -> Path:
        return self.path / "run.toml"

    @property
    def plan(self) -> Path:
        return self.path / "by-hand.json"

    @property
    def checkpoint(self) -> Path:
        return RunConfig.load(self.config).checkpoint


class TinyModel:
    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        shape = {"num_hidden_layers": 4, "tie_word_embeddings": True}
        self.folder = ModelFolder(write_tiny_model(path, with_tokenizer=True, **shape))
        (path / "calibration.txt").write_text("A quick brown fox. " * 400)
        (path / "heldout.txt").write_text("A slow red hen. " * 200)

    def write_files(self, path: Path, hostfile: str, layers_per_stage: Sequence[int]) -> RunFiles:
        """A run over the hosts of this hostfile, with a plan of one stage for each slot; nothing is quantised yet."""
        files = RunFiles(path)
        path.mkdir(exist_ok=True)
        files.hostfile.write_text(hostfile)
        files.config.write_text(CONFIG.format(model=self.folder.path, path=path))
        names = [device.name for device in RunConfig.load(files.config).cluster.devices]
        self.plan(files, dict(zip(names, layers_per_stage, strict=True))).save(files.plan)
        return files

    def plan(
        self, files: RunFiles, stages: Mapping[str, int], decoders: Sequence[Choice] = DECODERS, batch_size: int = 4
    ) -> Plan:
        """`stages` are devices with their number of layers, in pipeline order."""
        config = RunConfig.load(files.config)
        layers = iter((UNQUANTISED, *decoders, UNQUANTISED))
        planned = tuple(StagePlan(name, tuple(itertools.islice(layers, count))) for name, count in stages.items())
        assert not list(layers)
        facts = {"path": str(self.folder.path), "digest": self.folder.digest, "num_hidden_layers": 4}
        workload = replace(config.workload, batch_size=batch_size)
        return Plan(facts, config.cluster.devices, workload, planned, min(2, batch_size), 1)

    def quantise(self, files: RunFiles, decoders: Sequence[Choice] = DECODERS) -> None:
        windows = CalibrationWindows.from_text(self.folder, self.folder.path / "calibration.txt")
        quantise_layers(self.folder, enumerate(decoders), windows, files.checkpoint)

    def greedy(self, checkpoint: Path, choices: Sequence[Choice] = DECODERS) -> list[list[int]]:
        """As one process answers the batch with these quantised layers, up to the end of each text."""
        shards = ShardStore.of_model(checkpoint, self.folder.digest)
        model = single_process_model(self.folder, choices, shards, dequantised=True)
        answers = []
        for tokens, limit in zip(model.generate_greedy(PROMPTS, max(LIMITS)), LIMITS, strict=True):
            end = tokens.index(0) + 1 if 0 in tokens else len(tokens)
            answers.append(tokens[: min(end, limit)])
        assert len(set(map(tuple, answers))) == len(PROMPTS)  # a model that says one thing proves little
        return answers


def write_batch(
    path: Path,
    prompts: Sequence[object] = tuple(PROMPTS),
    max_tokens: Sequence[int] = tuple(LIMITS),
    **fields: object,
) -> Path:
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, "max_tokens": limit, **fields},
        }
        for number, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_answers(path: Path) -> list[list[int]]:
    return [body["choices"][0]["token_ids"] for body in read_bodies(path)]


def read_bodies(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["response"]["body"] for line in path.read_text().splitlines()]
