"""From a plan to one stage's running engine: load its layers, hold it to its memory budget."""

from functools import partial

import torch
from torch import nn

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.cost.memory import plan_memory
from hetero_infer.models import KVCache
from hetero_infer.pipeline.device import Runtime
from hetero_infer.pipeline.engine import HeteroPipelineEngine
from hetero_infer.pipeline.message import MessageFormat
from hetero_infer.pipeline.module import PlannedLayer, PlannedPipelineModule
from hetero_infer.spec import UNQUANTISED, InfeasibleError, Phase, Plan

MIB = 2**20


def build_engine(
    plan: Plan, stage: int, folder: ModelFolder, shards: ShardStore | None, runtime: Runtime
) -> HeteroPipelineEngine:
    """The engine of `stage`; the process group of all stages is there already.

    Raises `InfeasibleError` when weights, KV cache and workspace pass the memory of the stage's device.
    """
    spec, device = folder.spec, plan.device_of(stage)

    tied: dict[str, torch.Tensor] = {}  # the embedding's table, where the head stands beside it: held once only

    is_tied = spec.tie_word_embeddings and plan.embedding_choice == plan.head_choice == UNQUANTISED

    def load(position: int) -> nn.Module:
        choice, is_head = plan.layer_choices[position], position == spec.num_layers - 1
        layer = load_layer(
            folder, position, choice, shards, runtime.dtype, runtime.device, shared=tied if is_head else None
        )
        if position == 0 and is_tied:
            tied["lm_head.weight"] = layer.embed_tokens.weight
        return layer

    layers = [PlannedLayer(partial(load, position)) for position in range(spec.num_layers)]
    module = PlannedPipelineModule(layers, plan.bounds)
    cache = KVCache(
        plan.decoder_range(stage),
        plan.workload.batch_size,
        plan.workload.cache_tokens,
        spec.num_key_value_heads,
        spec.head_dim,
        runtime.dtype,
        runtime.device,
    )
    weight_bytes = sum({t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}.values())
    used_bytes = weight_bytes + cache.num_bytes + plan_memory(spec, plan)[stage].workspace
    if used_bytes > device.memory_bytes:
        raise InfeasibleError(
            f"stage {stage} on {device.name} holds {used_bytes / MIB:.1f} MiB and may use "
            f"{device.memory_bytes / MIB:.1f}; give it fewer layers or bits, lower batch_size, or raise its memory"
        )
    format = MessageFormat(
        max_sequences={Phase.PREFILL: plan.prefill_micro_batch_size, Phase.DECODE: plan.decode_micro_batch_size},
        max_rows={
            Phase.PREFILL: plan.prefill_micro_batch_size * plan.workload.prompt_tokens,
            Phase.DECODE: plan.decode_micro_batch_size,
        },
        hidden_size=spec.hidden_size,
        dtype=runtime.dtype,
    )
    return HeteroPipelineEngine(
        module, cache, format, plan.prefill_micro_batch_size, plan.decode_micro_batch_size, device.slowdown
    )
