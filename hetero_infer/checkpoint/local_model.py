"""`LocalModel`: every layer in this process. Perplexity is measured on it, and pipelines are compared with it."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.models import KVCache, MicroBatch
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.quant.ends import QuantEmbedding
from hetero_infer.quant.linear import QuantLinear
from hetero_infer.spec import UNQUANTISED, Choice, InputError, ModelSpec, Phase


def single_process_model(
    folder: ModelFolder,
    decoder_choices: Sequence[Choice] | None = None,
    shards: ShardStore | None = None,
    dequantised: bool = False,
    ends: tuple[Choice, Choice] = (UNQUANTISED, UNQUANTISED),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> "LocalModel":
    """The model under one choice per decoder layer, without any as the folder has it; `ends` are embedding and head.

    `dequantised` puts plain Linears and tables with the same weights in place of the quantised ones.
    """
    spec = folder.spec
    decoder_choices = decoder_choices or spec.stored_choices or [UNQUANTISED] * spec.num_hidden_layers
    if len(decoder_choices) != spec.num_hidden_layers:
        raise InputError(f"model {folder.path}: {spec.num_hidden_layers} layers, {len(decoder_choices)} choices")
    choices = [ends[0], *decoder_choices, ends[1]]
    layers = [load_layer(folder, position, choice, shards, dtype, device) for position, choice in enumerate(choices)]
    if dequantised:
        for layer in layers:
            dequantise(layer, dtype)
    return LocalModel(spec, layers, dtype, device)


class LocalModel:
    def __init__(
        self,
        spec: ModelSpec,
        layers: Sequence[nn.Module],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.layers = layers
        self.dtype = dtype
        self.device = torch.device(device)

    @torch.inference_mode()
    def logits(self, windows: torch.Tensor) -> torch.Tensor:
        """Token ids `[windows, tokens]` to logits `[windows, tokens, vocab_size]`; windows start without a past."""
        count, tokens = windows.shape
        batch = MicroBatch(Phase.PREFILL, tuple(range(count)), (0,) * count, (tokens,) * count, self.device)
        hidden = self._hidden(windows.flatten(), batch, self._cache(count, tokens))
        return self.layers[-1](hidden, batch, None)[: batch.live_rows].view(count, tokens, -1)

    @torch.inference_mode()
    def greedy_logits(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[torch.Tensor]:
        """Logits `[prompts, vocab_size]` of each new token in turn, the most likely one being taken every time."""
        count = len(prompts)
        lengths = tuple(map(len, prompts))
        cache = self._cache(count, max(lengths) + max_new_tokens - 1)
        slots = tuple(range(count))
        batch = MicroBatch(Phase.PREFILL, slots, (0,) * count, lengths, self.device)
        token_ids = torch.tensor(list(itertools.chain.from_iterable(prompts)))
        for step in range(max_new_tokens):
            if step:
                batch = MicroBatch(Phase.DECODE, slots, tuple(n + step - 1 for n in lengths), (1,) * count, self.device)
            hidden = self._hidden(token_ids, batch, cache)
            logits = self.layers[-1](pad_rows(hidden[batch.last_rows]), batch, cache)[:count]
            token_ids = logits.argmax(-1)
            yield logits

    def generate_greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The new tokens of each prompt, always `max_new_tokens`: no token ends a sequence here."""
        steps = [logits.argmax(-1) for logits in self.greedy_logits(prompts, max_new_tokens)]
        return torch.stack(steps, dim=1).tolist()

    def _cache(self, num_slots: int, max_tokens: int) -> KVCache:
        spec = self.spec
        return KVCache(
            range(spec.num_hidden_layers),
            num_slots,
            max_tokens,
            spec.num_key_value_heads,
            spec.head_dim,
            self.dtype,
            self.device,
        )

    def _hidden(self, token_ids: torch.Tensor, batch: MicroBatch, cache: KVCache) -> torch.Tensor:
        """`[live_rows]` token ids through all layers but the head, to `[padded_rows, hidden_size]`."""
        hidden = pad_rows(token_ids.to(self.device))
        for layer in self.layers[:-1]:
            hidden = layer(hidden, batch, cache)
        return hidden


def dequantise(module: nn.Module, dtype: torch.dtype) -> None:
    """Put plain Linears and tables with the same weights in place of the quantised ones."""
    for name, child in module.named_children():
        if isinstance(child, QuantEmbedding):
            setattr(module, name, nn.Embedding.from_pretrained(child.dequantised(dtype).t()))
        elif isinstance(child, QuantLinear):
            linear = nn.Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
            # A view, so that both multiply the same memory layout and the results can be compared bit by bit.
            linear.weight = nn.Parameter(child.dequantised(dtype).t(), requires_grad=False)
            linear.bias = child.bias
            setattr(module, name, linear)
        else:
            dequantise(child, dtype)
