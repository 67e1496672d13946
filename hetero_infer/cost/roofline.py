"""`RooflineLatency`: seconds of a layer from the spec sheet, for a device type that nobody has measured.

A layer takes as long as its arithmetic or its memory traffic, whichever is longer, and then what it takes to start its
kernels. A prediction from a sheet of paper: right about which device is faster, not about by how much
(docs/decisions/0010-measured-or-from-the-spec-sheet.md has how far it is off where we could compare).
"""

from collections.abc import Iterable, Mapping

from hetero_infer.cost import memory
from hetero_infer.cost.latency import SPEC_SHEET, LayerKind, Source
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.gpu_type import CPU_THREAD, GPU_TYPES
from hetero_infer.spec.model import ModelSpec
from hetero_infer.spec.workload import Phase

COMPUTE_SHARE, BANDWIDTH_SHARE = 0.5, 0.8  # of the sheet's figures, that products of matrices get in practice
# Per weight, what `QuantLinear` writes and reads again on its way from codes to a product.
UNPACK_BYTES: Mapping[Phase, float] = {Phase.PREFILL: 44, Phase.DECODE: 44}
KERNEL_S = 8e-6  # from Python to a kernel's start
LAYER_KERNELS, ATTENTION_KERNELS, UNPACK_KERNELS, END_KERNELS = 40, 10, 10, 4


class RooflineLatency:
    """Of one model. Every choice is allowed: nothing was measured that could be missing.

    `unpack_bytes` describes the kernels of quantised layers: ours, unless other ones are asked about.
    """

    def __init__(self, model: ModelSpec, unpack_bytes: Mapping[Phase, float] = UNPACK_BYTES) -> None:
        self._model = model
        self._unpack_bytes = unpack_bytes

    def allowed_choices(self, device: Device, choices: Iterable[Choice]) -> tuple[Choice, ...]:
        _rates(device)
        return tuple(choices)

    def source(self, device: Device) -> Source:
        return Source(SPEC_SHEET)

    def layer_seconds(
        self,
        device: Device,
        kind: LayerKind,
        choice: Choice,
        phase: Phase,
        batch: int,
        input_tokens: int,
        past_tokens: int,
    ) -> float:
        match kind:
            case "decoder":
                flops, num_bytes, kernels = self._decoder(device, choice, phase, batch, input_tokens, past_tokens)
            case "embedding":
                rows = batch * input_tokens
                flops, num_bytes, kernels = 0, 2 * rows * self._model.hidden_size * device.element_bytes, END_KERNELS
            case "head":
                table = self._model.table_elements
                logits = batch * self._model.vocab_size * memory.LOGIT_BYTES
                flops, num_bytes, kernels = 2 * batch * table, table * device.element_bytes + logits, END_KERNELS
        flops_per_s, bytes_per_s = _rates(device)
        busy_s = max(flops / (flops_per_s * COMPUTE_SHARE), num_bytes / (bytes_per_s * BANDWIDTH_SHARE))
        return (busy_s + kernels * KERNEL_S) * device.slowdown

    def _decoder(
        self, device: Device, choice: Choice, phase: Phase, batch: int, input_tokens: int, past_tokens: int
    ) -> tuple[float, float, int]:
        """FLOPs, bytes and kernels. Prefill attends to one sequence after the other, half a prompt at the mean."""
        model, rows = self._model, batch * input_tokens
        linears = model.linears.values()
        weights = sum(linear.out_features * linear.in_features for linear in linears)
        attended = past_tokens + (input_tokens + 1) // 2
        queries = model.num_attention_heads * model.head_dim
        activations = rows * sum(linear.out_features + linear.in_features for linear in linears)
        elements = activations + batch * (past_tokens + input_tokens) * model.kv_elements_per_token
        weight_bytes = memory.decoder_layer_bytes(model, choice, device.element_bytes)
        num_bytes: float = weight_bytes + elements * device.element_bytes
        kernels = LAYER_KERNELS + ATTENTION_KERNELS * (batch if phase is Phase.PREFILL else 1)
        if choice.is_quantised:
            num_bytes += weights * self._unpack_bytes[phase]
            kernels += UNPACK_KERNELS * len(linears)
        return 2 * rows * weights + 4 * rows * attended * queries, num_bytes, kernels


def _rates(device: Device) -> tuple[float, float]:
    """FLOP/s in the type that the device computes in, and bytes/s."""
    if device.is_cpu:
        return CPU_THREAD.fp32_flops * device.threads, CPU_THREAD.bytes_per_s * device.threads
    gpu = GPU_TYPES.get(device.type)
    if gpu is None:
        raise InputError(
            f"device {device.name}: {device.type} was not measured, and the spec sheet has no such type (it has "
            f"{', '.join(GPU_TYPES)}); measure it with 'deepspeed --hostfile HOSTFILE launch/measure.py -c RUN.toml'"
        )
    return gpu.fp16_flops, gpu.bytes_per_s
