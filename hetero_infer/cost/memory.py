"""Bytes of a stage, part by part, as the runtime allocates them. Rounded inward: never under.

`element_bytes` is `Device.element_bytes` everywhere: what an unquantised weight, an activation and a KV entry take.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hetero_infer.cost.comm import activation_message_bytes
from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.model import Linear, ModelSpec, Rope
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase, Workload

ATTENTION_BLOCK_TOKENS = 256  # prefill attends in blocks of this many queries
DEQUANTISE_BLOCK_WEIGHTS = {4: 2**16, 2: 2**22}  # by element_bytes, so on a CPU and on a GPU; or 32 input features
BLOCK_BYTES = 12  # per weight of such a block: codes, zeros and scales on their way
FLOAT32_BYTES = SCORE_BYTES = LOGIT_BYTES = 4  # whatever the device computes in
MARGIN_PERCENT = 1  # of all parts: holes in the heap; docs/results.md has what was measured
PROCESS_BYTES = 32 * 2**20  # beside a stage's memory, whatever it holds: code of libraries, gloo, MKL (on a CPU)
MASK_BYTES = 9  # of a query and a key: seen or not, and how far apart
ROW_BLOCK = 4  # the head's rows are padded to whole blocks, on one thread
BUFFERS_PER_NEIGHBOUR = 2  # to receive into, or to send from


@dataclass(frozen=True)
class StageMemory:
    """Bytes per part; embedding and head count as weights where they stand, the margin as workspace."""

    weights: int
    kv_cache: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace


def with_margin(num_bytes: int) -> int:
    """With what allocators and libraries hold besides what is asked of them."""
    return num_bytes + -(-num_bytes * MARGIN_PERCENT // 100)


def without_margin(num_bytes: int) -> int:
    """The most that is `num_bytes` or less with its margin."""
    return num_bytes * 100 // (100 + MARGIN_PERCENT)


def linear_bytes(linear: Linear, choice: Choice, element_bytes: int) -> int:
    """Weight and bias of a Linear; quantised, `qweight`, `qzeros`, `scales` (fp16) and `g_idx` in the GPTQ layout."""
    out_features, in_features, has_bias = linear
    bias = has_bias * out_features * element_bytes
    if not choice.is_quantised:
        return out_features * in_features * element_bytes + bias
    groups = -(-in_features // choice.group_size)
    qweight = _round_up(in_features, 32) * choice.bits // 32 * out_features * 4
    qzeros = groups * (_round_up(out_features, 32) * choice.bits // 32) * 4
    scales = groups * out_features * 2
    g_idx = in_features * 4
    return qweight + qzeros + scales + g_idx + bias


def decoder_layer_bytes(model: ModelSpec, choice: Choice, element_bytes: int) -> int:
    """Weights of one decoder layer; its norms and biases are never quantised."""
    linears = sum(linear_bytes(linear, choice, element_bytes) for linear in model.linears.values())
    return linears + model.norm_elements * element_bytes


def end_layer_bytes(model: ModelSpec, embedding: Choice | None, head: Choice | None, element_bytes: int) -> int:
    """Embedding and head of a stage, each at its choice; None where it does not stand there.

    Tied weights are one tensor where both stand unquantised, else a tensor each.
    """
    tables = [linear_bytes(model.table, choice, element_bytes) for choice in (embedding, head) if choice]
    if model.tie_word_embeddings and embedding == head == UNQUANTISED:
        tables.pop()
    others = bool(embedding) * model.embedding_elements + bool(head) * model.head_elements
    return sum(tables) + others * element_bytes


def kv_cache_bytes(model: ModelSpec, workload: Workload, element_bytes: int) -> int:
    """Of one decoder layer: a slot per sequence of the batch, each of whole blocks of tokens."""
    return workload.batch_size * workload.slot_tokens * model.kv_elements_per_token * element_bytes


def workspace_bytes(
    model: ModelSpec,
    workload: Workload,
    prefill_size: int,
    decode_size: int,
    element_bytes: int,
    *,
    is_first: bool,
    is_last: bool,
    dequantises: bool,
) -> int:
    """Message buffers, and what is alive while a micro-batch is worked on: the larger of the two phases.

    `prefill_size` and `decode_size` are sequences per micro-batch (η, ξ); `dequantises` says whether the stage has
    a quantised decoder layer or head, which is unpacked into a buffer. What a quantised embedding looks up is less
    than a decoder layer's activations.
    """
    message = max(
        activation_message_bytes(phase, sequences, sequences * tokens, model.hidden_size, element_bytes)
        for phase, sequences, tokens in (
            (Phase.PREFILL, prefill_size, workload.prompt_tokens),
            (Phase.DECODE, decode_size, 1),
        )
    )
    buffer = dequantise_bytes(model, element_bytes) if dequantises else 0
    at_work = [
        _layer_work_bytes(model, workload, phase, sequences, element_bytes, buffer)
        for phase, sequences in ((Phase.PREFILL, prefill_size), (Phase.DECODE, decode_size))
    ]
    if is_last:
        rows = _round_up(max(prefill_size, decode_size), ROW_BLOCK)
        per_row = model.vocab_size * LOGIT_BYTES + 2 * model.hidden_size * element_bytes  # the input, also normed
        at_work.append(rows * per_row + buffer)
    neighbours = (not is_first) + (not is_last)
    return neighbours * BUFFERS_PER_NEIGHBOUR * message + max(at_work)


def dequantise_bytes(model: ModelSpec, element_bytes: int) -> int:
    """What a stage with a quantised decoder layer or head has besides: the largest Linear dequantised, or as much of
    the head as is multiplied at once, and a block on its way there."""

    def of(linear: Linear) -> int:
        weights = linear.out_features * linear.in_features
        block = min(max(DEQUANTISE_BLOCK_WEIGHTS[element_bytes], 32 * linear.out_features), weights)
        return weights * element_bytes + block * BLOCK_BYTES

    head_block = Linear(model.head_block_rows, model.embedding_size, False)
    return max(map(of, (*model.linears.values(), head_block)))


def stage_memory(
    model: ModelSpec,
    workload: Workload,
    prefill_size: int,
    decode_size: int,
    decoder_choices: Sequence[Choice],
    element_bytes: int,
    *,
    embedding: Choice | None,
    head: Choice | None,
) -> StageMemory:
    """A stage with these decoder layers, and with the embedding or the head where it is not None."""
    weights = sum(decoder_layer_bytes(model, choice, element_bytes) for choice in decoder_choices)
    weights += end_layer_bytes(model, embedding, head, element_bytes)
    kv_cache = len(decoder_choices) * kv_cache_bytes(model, workload, element_bytes)
    workspace = workspace_bytes(
        model,
        workload,
        prefill_size,
        decode_size,
        element_bytes,
        is_first=embedding is not None,
        is_last=head is not None,
        dequantises=any(choice.is_quantised for choice in (*decoder_choices, head) if choice),
    )
    return StageMemory(
        weights=weights,
        kv_cache=kv_cache,
        workspace=workspace + with_margin(weights + kv_cache + workspace) - (weights + kv_cache + workspace),
    )


def plan_memory(model: ModelSpec, plan: Plan) -> tuple[StageMemory, ...]:
    """Every stage of a plan."""
    return tuple(
        stage_memory(
            model,
            plan.workload,
            plan.prefill_micro_batch_size,
            plan.decode_micro_batch_size,
            [plan.decoder_choices[layer] for layer in plan.decoder_range(stage)],
            plan.device_of(stage).element_bytes,
            embedding=plan.embedding_choice if stage == 0 else None,
            head=plan.head_choice if stage == len(plan.stages) - 1 else None,
        )
        for stage in range(len(plan.stages))
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _layer_work_bytes(
    model: ModelSpec, workload: Workload, phase: Phase, sequences: int, element_bytes: int, buffer: int
) -> int:
    """The fullest moment of a decoder layer that works on a micro-batch, its input and output included.

    Each line below is a moment in `models/`, and counts the tensors that somebody still holds then. `buffer` is what
    a Linear's weight is dequantised into.
    """
    new_tokens = workload.prompt_tokens if phase is Phase.PREFILL else 1
    per_element = sequences * new_tokens * element_bytes
    hidden, inner = per_element * model.hidden_size, per_element * model.intermediate_size
    query = per_element * model.num_attention_heads * model.head_dim
    key = per_element * model.num_key_value_heads * model.head_dim
    norm = 2 * hidden * max(1, FLOAT32_BYTES // element_bytes)  # a norm computes in float32
    tables = 0
    attending = 2 * hidden + query + 2 * key
    moments = [3 * hidden + norm]
    if isinstance(model.positions, Rope):
        attending += 2 * per_element * model.head_dim  # cosines and sines of the rows
        moments += [attending + 3 * query, attending + query + 3 * key]
        tables = 2 * workload.slot_tokens * model.head_dim * element_bytes  # of all positions
    moments += [
        attending + _score_bytes(model, workload, phase, sequences, element_bytes) + query,
        attending + query + hidden + buffer,
        3 * hidden + inner + max(inner, hidden) + buffer,
    ]
    return max(moments) + tables


def _score_bytes(model: ModelSpec, workload: Workload, phase: Phase, sequences: int, element_bytes: int) -> int:
    """Scores and their softmax, and what they make. In prefill one sequence at a time, a block of queries at a time."""
    heads, head_dim = model.num_attention_heads, model.head_dim
    if phase is Phase.DECODE:
        spread = 2 * sequences * heads * head_dim * element_bytes
        return sequences * workload.slot_tokens * (2 * heads * SCORE_BYTES + MASK_BYTES) + spread
    queries, tokens = min(ATTENTION_BLOCK_TOKENS, workload.prompt_tokens), workload.prompt_tokens
    scores = heads * queries * tokens * SCORE_BYTES
    output = heads * tokens * head_dim * element_bytes
    repeated = output if model.num_key_value_heads < heads else 0  # keys or values, once per query head
    mask = queries * tokens * MASK_BYTES
    return output + mask + scores + max(scores, repeated + heads * queries * head_dim * element_bytes)
