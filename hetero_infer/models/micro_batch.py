"""`MicroBatch`: the sequences that one forward pass works on, and where each of them stands."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch

from hetero_infer.spec import Phase


@dataclass(frozen=True)
class MicroBatch:
    """Sequence `i` brings `new_tokens[i]` rows after the `past_tokens[i]` it has in KV cache slot `slots[i]`.

    Rows of all sequences lie one after the other without padding between them, so a sequence's numbers do not depend
    on the lengths of its neighbours. At the end rows are padded to a multiple of `row_block()`: below it, matrix
    products take another path and a row's last bits would depend on how many rows there are.
    """

    phase: Phase
    slots: tuple[int, ...]
    past_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @property
    def num_sequences(self) -> int:
        return len(self.slots)

    @cached_property
    def live_rows(self) -> int:
        return sum(self.new_tokens)

    @cached_property
    def padded_rows(self) -> int:
        return padded_row_count(self.live_rows)

    @cached_property
    def row_ranges(self) -> tuple[slice, ...]:
        """The rows of each sequence."""
        ends = list(itertools.accumulate(self.new_tokens))
        return tuple(slice(end - count, end) for end, count in zip(ends, self.new_tokens, strict=True))

    @cached_property
    def positions(self) -> torch.Tensor:
        """Of each row in its sequence, int64 `[padded_rows]`; 0 for padding."""
        values = [
            position
            for past, new in zip(self.past_tokens, self.new_tokens, strict=True)
            for position in range(past, past + new)
        ]
        values += [0] * (self.padded_rows - len(values))
        return torch.tensor(values, device=self.device)

    @cached_property
    def slot_index(self) -> torch.Tensor:
        return torch.tensor(self.slots, device=self.device)

    @cached_property
    def last_rows(self) -> torch.Tensor:
        """The row of each sequence's newest token, int64 `[num_sequences]`."""
        return torch.tensor([rows.stop - 1 for rows in self.row_ranges], device=self.device)


def row_block() -> int:
    """Rows per thread from which a matrix product's rows stop depending on their number: 4, measured with MKL."""
    return 4 * torch.get_num_threads()


def padded_row_count(rows: int) -> int:
    block = row_block()
    return -(-rows // block) * block


def pad_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` with zero rows after it, up to `padded_row_count`."""
    missing = padded_row_count(len(x)) - len(x)
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x
