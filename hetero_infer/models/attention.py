"""Causal attention with grouped key-value heads over the slots of a `KVCache`."""

import math
from functools import lru_cache

import torch

from hetero_infer.models.kv_cache import KVCache
from hetero_infer.models.micro_batch import MicroBatch
from hetero_infer.spec import Phase
from hetero_infer.spec.workload import round_up_to_block

QUERY_BLOCK = 256  # query rows whose scores exist at once in prefill


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    batch: MicroBatch,
    cache: KVCache,
    window: int | None = None,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Store `key` and `value` `[rows, kv_heads, head_dim]`, then attend with `query` `[rows, heads, head_dim]`.

    A token sees itself and those before it, the newest `window` of them if there is a window. `slopes` `[heads]` are
    ALiBi's. Gives `[rows, heads · head_dim]`, zero in padding rows.
    """
    output = query.new_zeros(len(query), query.shape[1] * query.shape[2])
    keys, values = cache.keys[layer], cache.values[layer]
    if batch.phase is Phase.DECODE:
        live = batch.live_rows
        positions = batch.positions[:live]
        keys[batch.slot_index, :, positions] = key[:live]
        values[batch.slot_index, :, positions] = value[:live]
        output[:live] = _decode(query[:live], keys, values, batch, window, slopes)
        return output
    for slot, past, rows in zip(batch.slots, batch.past_tokens, batch.row_ranges, strict=True):
        end = past + rows.stop - rows.start
        keys[slot, :, past:end] = key[rows].transpose(0, 1)
        values[slot, :, past:end] = value[rows].transpose(0, 1)
        output[rows] = _prefill(query[rows], keys[slot, :, :end], values[slot, :, :end], past, window, slopes)
    return output


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    past: int,
    window: int | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence: `query` `[new, heads, head_dim]`, `keys` and `values` `[kv_heads, past + new, head_dim]`."""
    new, heads, head_dim = query.shape
    kv_heads, tokens, _ = keys.shape
    grouped = query.view(new, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    slopes = None if slopes is None else slopes.view(kv_heads, -1, 1, 1)
    key_position = torch.arange(tokens, device=query.device)
    output = query.new_empty(new, heads * head_dim)
    blocks = output.view(new, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    for first in range(0, new, QUERY_BLOCK):
        block = grouped[:, :, first : first + QUERY_BLOCK]
        query_position = past + first + torch.arange(block.shape[2], device=query.device)
        unseen = _unseen(key_position, query_position[:, None], window)
        # softmax sees differences only, and distances keep their precision in half floats
        distance = key_position - query_position[-1]
        blocks[:, :, first : first + QUERY_BLOCK] = _weighted(
            block, keys.unsqueeze(1), values.unsqueeze(1), unseen, slopes, distance
        )
    return output


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: MicroBatch,
    window: int | None,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """One row per sequence: `query` `[sequences, heads, head_dim]` over whole caches `keys`, `values`.

    Slots between theirs whose sequences have finished are worked on, too: a view of the cache serves then.
    """
    sequences, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    tokens = round_up_to_block(max(batch.past_tokens) + 1)  # so that reductions keep their order
    first, last = min(batch.slots), max(batch.slots)
    place = batch.slot_index - first
    spread = query.new_zeros(last + 1 - first, kv_heads, heads // kv_heads, head_dim)
    spread[place] = query.view(sequences, kv_heads, heads // kv_heads, head_dim)
    query_position = batch.positions.new_zeros(last + 1 - first, 1)
    query_position[place] = batch.positions[:sequences, None]
    key_position = torch.arange(tokens, device=query.device)
    output = _weighted(
        spread,
        keys[first : last + 1, :, :tokens],
        values[first : last + 1, :, :tokens],
        _unseen(key_position, query_position, window)[:, None, None],
        None if slopes is None else slopes.view(kv_heads, -1, 1),
        (key_position - query_position)[:, None, None],
    )
    return output[place].view(sequences, heads * head_dim)


def _weighted(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    unseen: torch.Tensor,
    slopes: torch.Tensor | None,
    distance: torch.Tensor,
) -> torch.Tensor:
    """Means of `values` `[…, tokens, head_dim]` for `query` `[…, rows, head_dim]`. No scores outlive it."""
    scores = (query @ keys.transpose(-1, -2)).div_(math.sqrt(query.shape[-1]))
    if slopes is not None:
        scores += slopes * distance
    scores.masked_fill_(unseen, -math.inf)
    scores = torch.softmax(scores, dim=-1, dtype=torch.float32)
    return scores.to(values.dtype) @ values


def _unseen(key_position: torch.Tensor, query_position: torch.Tensor, window: int | None) -> torch.Tensor:
    later = key_position > query_position
    return later if window is None else later | (key_position <= query_position - window)


@lru_cache(maxsize=4)
def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """Of each head, float32: a geometric series (Press et al., arXiv 2108.12409).

    Between two powers of two it is the smaller one's series and then every other term of the larger one's.
    """
    whole = 2 ** int(math.log2(heads))

    def series(count: int) -> list[float]:
        return [2.0 ** (-8.0 * term / count) for term in range(1, count + 1)]

    return torch.tensor([*series(whole), *series(2 * whole)[::2][: heads - whole]], device=device)
