"""The planning cases that planners are compared on: LLM-PQ's clusters, and the models they serve."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hetero_infer.cost.latency import LatencyModel
from hetero_infer.cost.roofline import RooflineLatency
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Choice, Cluster, Device, Link, ModelSpec, Phase, SensitivityTable, Workload
from hetero_infer.spec.choice import DEFAULT_GROUP_SIZE
from hetero_infer.spec.gpu_type import GPU_TYPES

BITWIDTHS = (3, 4, 8, 16)
LINK = Link(alpha_s=1e-4, bytes_per_s=3e9)  # between any two devices: our assumption, the authors give none
# Prefill writes the dequantised weights and reads them again; decode reads the codes alone.
DEQUANTISE_THEN_MULTIPLY: Mapping[Phase, float] = {Phase.PREFILL: 4.0, Phase.DECODE: 0.0}
OmegaShape = Literal["depth", "random"]
Level = Literal["4", "mid", "8"]

_OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "word_embed_proj_dim": None}
_MODELS: Mapping[str, Mapping[str, Any]] = {
    "opt-13b": _OPT | {"hidden_size": 5120, "ffn_dim": 20480, "num_hidden_layers": 40, "num_attention_heads": 40},
    "opt-30b": _OPT | {"hidden_size": 7168, "ffn_dim": 28672, "num_hidden_layers": 48, "num_attention_heads": 56},
    "opt-66b": _OPT | {"hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64, "num_attention_heads": 72},
    "bloom-176b": {
        "model_type": "bloom",
        "vocab_size": 250880,
        "hidden_size": 14336,
        "n_layer": 70,
        "n_head": 112,
    },
    "llama-2-70b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "llama-405b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
_TYPES = {  # as the authors' scripts write them
    "V100-SXM2-32G": "v100-32",
    "V100-32G": "v100-32",
    "A100-SXM4-40G": "a100-40",
    "A100-40G": "a100-40",
    "A100-80G": "a100-80",
    "P100-12G": "p100-12",
    "T4": "t4",
}


def big_model(name: str) -> ModelSpec:
    """The facts of a published model, from its public ``config.json``."""
    config = {key: value for key, value in _MODELS[name].items() if value is not None}
    return ModelSpec.from_config(config, name)


def devices(counts: Mapping[str, int]) -> tuple[Device, ...]:
    """``{"t4": 3, "v100-32": 1}``, each card a slot of one host, with all of its memory."""
    types = [gpu for gpu, count in counts.items() for _ in range(count)]
    return tuple(Device("node", slot, gpu, GPU_TYPES[gpu].memory_bytes) for slot, gpu in enumerate(types))


def synthetic_omega(shared: Path, model: str, shape: OmegaShape) -> SensitivityTable:
    """The synthetic ω of a big model; its choices are `BITWIDTHS` in groups of 64."""
    table = _synthetic(shared, model, shape)
    choices = tuple(Choice(bits, DEFAULT_GROUP_SIZE if bits < 16 else 0) for bits in table["bits"])
    return SensitivityTable("synthetic", model, "none", "nats", choices, tuple(map(tuple, table["omega"])))


def synthetic_limit(shared: Path, model: str, shape: OmegaShape, level: Level) -> float:
    """Ω at which the planners are compared: of all layers at 8 bits, at 4 bits, or half way in logarithm."""
    return float(_synthetic(shared, model, shape)["Omega"][level])


def case_request(
    shared: Path,
    model: str,
    counts: Mapping[str, int],
    workload: Workload,
    *,
    shape: OmegaShape = "depth",
    level: Level = "mid",
    latency: LatencyModel | None = None,
) -> PlanRequest:
    """A request with the synthetic ω; without `latency` the roofline, with a dequantise-then-multiply prefill."""
    spec, sensitivity = big_model(model), synthetic_omega(shared, model, shape)
    return PlanRequest(
        model=spec,
        model_facts={"path": model, "digest": model, "num_hidden_layers": spec.num_hidden_layers},
        cluster=Cluster(devices(counts), LINK),
        workload=workload,
        latency=latency or RooflineLatency(spec, DEQUANTISE_THEN_MULTIPLY),
        sensitivity=sensitivity,
        choices=sensitivity.choices,
        omega_limit=synthetic_limit(shared, model, shape, level),
        max_perplexity_increase=math.inf,
    )


@dataclass(frozen=True)
class PaperCluster:
    """One of LLM-PQ's: ``counts`` of each card."""

    case: int
    model: str
    counts: Mapping[str, int]
    batch_size: int


def paper_clusters(shared: Path) -> Iterator[PaperCluster]:
    """The 11 of the paper, in its order."""
    for cluster in json.loads((shared / "data/llm_pq/clusters.json").read_text())["clusters"]:
        if isinstance(cluster["case"], int):
            found = re.findall(r"(\d+)x([\w-]+)", cluster["devices"])
            counts = {_TYPES[name]: int(count) for count, name in found}
            yield PaperCluster(cluster["case"], cluster["model"], counts, cluster["global_batch"])


def _synthetic(shared: Path, model: str, shape: OmegaShape) -> dict[str, Any]:
    content = json.loads((shared / "data/llm_pq/omega_synthetic.json").read_text())
    return dict(content["models"][model][shape])
