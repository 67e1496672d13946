"""Bytes on the wire: activations from a stage to the next, sampled tokens from the last stage to the first.

`pipeline/message.py` and `pipeline/transport.py` write these messages; a test holds the figures to them.
"""

HEADER_BYTES, SEQUENCE_BYTES, HEADER_BLOCK_BYTES = 12, 36, 64
TOKEN_BYTES, TOKEN_HEADER_BYTES = 8, 24


def activation_message_bytes(tokens: int, hidden_size: int, element_bytes: int, batch_size: int) -> int:
    """Hidden states of `tokens` tokens in the sender's `element_bytes`, behind a header made for `batch_size`."""
    header = HEADER_BYTES + SEQUENCE_BYTES * batch_size
    return -(-header // HEADER_BLOCK_BYTES) * HEADER_BLOCK_BYTES + tokens * hidden_size * element_bytes


def token_message_bytes(sequences: int) -> int:
    """One sampled token per sequence, behind a small header."""
    return sequences * TOKEN_BYTES + TOKEN_HEADER_BYTES
