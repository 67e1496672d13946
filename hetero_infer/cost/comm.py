"""Bytes on the wire: activations from a stage to the next, sampled tokens from the last stage to the first.

`pipeline/message.py` and `pipeline/transport.py` write these messages; a test holds the figures to them.
"""

from hetero_infer.spec.workload import Phase

HEADER_BYTES, SEQUENCE_BYTES, HEADER_BLOCK_BYTES = 12, 12, 64
SAMPLING_BYTES, PROMPT_TOKEN_BYTES = 68, 4  # only in prefill
TOKEN_BYTES, TOKEN_HEADER_BYTES = 8, 32


def activation_message_bytes(phase: Phase, sequences: int, tokens: int, hidden_size: int, element_bytes: int) -> int:
    """Hidden states of `tokens` tokens of `sequences` in the sender's `element_bytes`, behind a header."""
    header = HEADER_BYTES + SEQUENCE_BYTES * sequences
    if phase is Phase.PREFILL:
        header += SAMPLING_BYTES * sequences + PROMPT_TOKEN_BYTES * tokens
    return -(-header // HEADER_BLOCK_BYTES) * HEADER_BLOCK_BYTES + tokens * hidden_size * element_bytes


def token_message_bytes(sequences: int) -> int:
    """One sampled token per sequence, behind a small header; log-probabilities, where asked for, are not counted."""
    return sequences * TOKEN_BYTES + TOKEN_HEADER_BYTES
