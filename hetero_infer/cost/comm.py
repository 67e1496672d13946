"""Bytes on the wire: activations from a stage to the next, sampled tokens from the last stage to the first."""

MESSAGE_HEADER_BYTES = 4096
TOKEN_BYTES = 4
TOKEN_HEADER_BYTES = 64


def activation_message_bytes(tokens: int, hidden_size: int, element_bytes: int) -> int:
    """Hidden states of `tokens` tokens in the sender's `element_bytes`, behind a fixed header."""
    return tokens * hidden_size * element_bytes + MESSAGE_HEADER_BYTES


def token_message_bytes(sequences: int) -> int:
    """One sampled token per sequence, behind a small header."""
    return sequences * TOKEN_BYTES + TOKEN_HEADER_BYTES
