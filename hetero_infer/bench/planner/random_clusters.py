"""Planning cases drawn at random: unlike devices, a model that needs most of their memory, any ω, hosts far apart."""

import math
import random

from hetero_infer.bench.planner.cases import BITWIDTHS, DEQUANTISE_THEN_MULTIPLY
from hetero_infer.cost.memory import decoder_layer_bytes, kv_cache_bytes
from hetero_infer.cost.roofline import RooflineLatency
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Choice, Cluster, Device, Link, ModelSpec, SensitivityTable, Workload
from hetero_infer.spec.choice import DEFAULT_GROUP_SIZE
from hetero_infer.spec.gpu_type import GPU_TYPES

TYPES = ("t4", "p100", "v100-16", "v100-32", "a10", "a30", "l4", "a40", "a100-40", "a100-80", "rtx3090", "rtx4090")
EIGHT_BITS = Choice(8, DEFAULT_GROUP_SIZE)
HEAD_DIM = 128


def random_cluster_request(seed: int) -> PlanRequest:
    """2 to 8 devices of 2 to 4 types on 1 or 2 hosts; a model of 12 to 20 layers as wide as it takes to fill a third
    to nine tenths of their memory at 8 bits; Ω between that of 8 bits and that of 4 in all layers."""
    rng = random.Random(seed)
    num_devices = rng.randint(2, 8)
    types = rng.sample(TYPES, rng.randint(2, min(4, num_devices)))
    cards = types + rng.choices(types, k=num_devices - len(types))
    hosts = rng.choice((1, 1, 2))
    devices = sorted(
        (
            Device(f"node{rng.randrange(hosts)}", slot, gpu, GPU_TYPES[gpu].memory_bytes)
            for slot, gpu in enumerate(cards)
        ),
        key=lambda device: (device.host, device.slot),
    )
    names = sorted({device.host for device in devices})
    near, far = Link(1e-5, 1.2e10), Link(1e-4, rng.choice((1.2e9, 3e9, 1.2e10)))
    links = {(a, b): near if a == b else far for a in names for b in names}
    workload = rng.choice((Workload(16, 512, 100), Workload(16, 128, 200)))
    model = _filling(rng, workload, rng.uniform(0.33, 0.9) * sum(device.memory_bytes for device in devices))
    sensitivity = _sensitivity(rng, model.num_hidden_layers)
    return PlanRequest(
        model=model,
        model_facts={"path": f"random-{seed}", "digest": str(seed), "num_hidden_layers": model.num_hidden_layers},
        cluster=Cluster(tuple(devices), far, links),
        workload=workload,
        latency=RooflineLatency(model, DEQUANTISE_THEN_MULTIPLY),
        sensitivity=sensitivity,
        choices=sensitivity.choices,
        omega_limit=4.0 ** rng.uniform(-4, 0),  # all layers at 8 bits lose 1/256, at 4 bits 1
        max_perplexity_increase=math.inf,
    )


def _filling(rng: random.Random, workload: Workload, num_bytes: float) -> ModelSpec:
    """As OPT, with the widest layers that leave it within `num_bytes` at 8 bits."""
    num_layers = rng.randint(12, 20)

    def model(heads: int) -> ModelSpec:
        config = {
            "model_type": "opt",
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "hidden_size": heads * HEAD_DIM,
            "ffn_dim": 4 * heads * HEAD_DIM,
            "num_hidden_layers": num_layers,
            "num_attention_heads": heads,
        }
        return ModelSpec.from_config(config, "random")

    heads = 8
    while num_layers * _layer_bytes(model(heads + 4), workload) < num_bytes:
        heads += 4
    return model(heads)


def _layer_bytes(model: ModelSpec, workload: Workload) -> int:
    return decoder_layer_bytes(model, EIGHT_BITS, 2) + kv_cache_bytes(model, workload, 2)


def _sensitivity(rng: random.Random, num_layers: int) -> SensitivityTable:
    """Four times the loss for two bits less, half as much again at 3 bits; all layers at 4 bits lose 1."""
    shape = [rng.uniform(0.2, 2) for _ in range(num_layers)]
    per_bits = {bits: 4.0 ** (4 - bits) * (1.5 if bits == 3 else 1) if bits < 16 else 0.0 for bits in BITWIDTHS}
    omega = tuple(tuple(share / sum(shape) * loss for loss in per_bits.values()) for share in shape)
    choices = tuple(Choice(bits, DEFAULT_GROUP_SIZE if bits < 16 else 0) for bits in BITWIDTHS)
    return SensitivityTable("random", "random", "none", "nats", choices, omega)
