"""What a decoder layer holds at its fullest moment, tensor by tensor, is what the plan counts for it."""

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hetero_infer.cost.memory import workspace_bytes
from hetero_infer.models import KVCache, MicroBatch, layers_of
from hetero_infer.spec import UNQUANTISED, Choice, ModelSpec, Phase, Workload

SHAPE = {"vocab_size": 1, "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 8}
LLAMA = SHAPE | {"model_type": "llama", "intermediate_size": 704}
OPT = SHAPE | {"model_type": "opt", "ffn_dim": 1024, "max_position_embeddings": 2048}
MODELS = {
    "llama": LLAMA,
    "few key-value heads": LLAMA | {"num_key_value_heads": 2},
    "window": LLAMA | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 64},
    "qwen3": LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64},
    "narrow MLP": LLAMA | {"intermediate_size": 128},
    "opt": OPT,
    "norms after": OPT | {"do_layer_norm_before": False},
    "bloom": {"model_type": "bloom", "vocab_size": 1, "hidden_size": 256, "n_layer": 1, "n_head": 8},
}


class LiveBytes(TorchDispatchMode):
    """Counts the storages that come and go while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        before = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in before and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
        self.most = max(self.most, sum(self._live.values()))
        return result


def _storages(tree: Any) -> Iterable[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    ("phase", "workload"),
    [("prefill", Workload(4, 64, 2)), ("prefill", Workload(2, 640, 2)), ("decode", Workload(8, 640, 2))],
)
@pytest.mark.parametrize("choice", [UNQUANTISED, Choice(3, 64), Choice(4, 64)], ids=str)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_fullest_moment_of_a_layer_is_counted(
    config: dict[str, object], choice: Choice, phase: str, workload: Workload
) -> None:
    spec, sequences, tokens = ModelSpec.from_config(config, "here"), workload.batch_size, workload.prompt_tokens
    layer = layers_of(spec)[1].build(choice).requires_grad_(False)
    cache = KVCache([0], sequences, workload.cache_tokens, spec.num_key_value_heads, spec.head_dim)
    past, new = (0, tokens) if phase == "prefill" else (tokens, 1)
    batch = MicroBatch(Phase(phase), tuple(range(sequences)), (past,) * sequences, (new,) * sequences)
    with torch.inference_mode(), LiveBytes() as live:
        layer(torch.randn(batch.padded_rows, spec.hidden_size), batch, cache)
    sizes = (sequences, 1) if phase == "prefill" else (1, sequences)
    one_phase = workload if phase == "prefill" else Workload(sequences, 1, tokens + 1)
    counted = workspace_bytes(spec, one_phase, *sizes, 4, is_first=True, is_last=True, dequantises=choice.is_quantised)
    assert 0.5 * counted <= live.most <= counted


@pytest.mark.parametrize("vocab_size", [320, 100_000])
@pytest.mark.parametrize("choice", [UNQUANTISED, Choice(3, 64), Choice(8, 64)], ids=str)
@pytest.mark.parametrize("config", [LLAMA, OPT | {"word_embed_proj_dim": 64}], ids=["llama", "opt"])
def test_embedding_and_head_hold_no_more_than_is_counted(
    config: dict[str, object], choice: Choice, vocab_size: int
) -> None:
    spec, workload = ModelSpec.from_config(config | {"vocab_size": vocab_size}, "here"), Workload(4, 64, 2)
    embedding, *_, head = layers_of(spec)
    cache = KVCache([0], 4, workload.cache_tokens, spec.num_key_value_heads, spec.head_dim)
    batch = MicroBatch(Phase.PREFILL, (0, 1, 2, 3), (0,) * 4, (64,) * 4)
    for end, rows in ((embedding, torch.zeros(256, dtype=torch.long)), (head, torch.randn(4, spec.hidden_size))):
        layer = end.build(choice).requires_grad_(False)
        with torch.inference_mode(), LiveBytes() as live:
            layer(rows, batch, cache)
        where = {"is_first": True, "is_last": end is head, "dequantises": end is head and choice.is_quantised}
        assert live.most <= workspace_bytes(spec, workload, 4, 4, 4, **where)
