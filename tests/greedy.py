"""Whether greedy tokens are those of `transformers`: the reference that every runtime here is held to."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

TIE_LOGITS = 1e-4  # nearer than this, two logits count as equally good


@torch.no_grad()
def assert_same_greedy_tokens(
    ours: Sequence[Sequence[int]], reference: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> None:
    """`ours[i]`, the new tokens after `prompts[i]`, equal `reference.generate`; where they part, it was a tie.

    From there on each of our tokens must be among the reference's best for our own text so far.
    """
    for prompt, tokens in zip(prompts, ours, strict=True):
        prompt_ids = torch.tensor([list(prompt)])
        theirs = reference.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=len(tokens),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        if list(tokens) == theirs:
            continue
        text = torch.tensor([[*prompt, *tokens[:-1]]])
        logits = reference(text).logits[0, len(prompt) - 1 :].float()
        behind = logits.amax(-1) - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        worst = int(behind.argmax())
        assert behind[worst] <= TIE_LOGITS, (
            f"prompt of {len(prompt)} tokens, new token {worst}: {tokens[worst]} is {behind[worst]:.2e} below the best"
        )
