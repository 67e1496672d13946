"""`Progress`: how far a batch is, on stderr. A bar on a terminal, else a line every few seconds."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 5.0


class Progress:
    def __init__(self, total: int, unit: str = "request") -> None:
        self._total = total
        self._unit = unit
        self._done = self._tokens = 0
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, unit=unit, file=sys.stderr) if sys.stderr.isatty() else None

    def advance(self, tokens: int) -> None:
        """One more is done, of so many tokens."""
        self._done += 1
        self._tokens += tokens
        now = time.monotonic()
        tokens_per_s = self._tokens / max(now - self._began, 1e-9)
        if self._bar:
            self._bar.set_postfix_str(f"{tokens_per_s:.1f} tokens/s", refresh=False)
            self._bar.update()
        elif now - self._last_line >= LINE_EVERY_S or self._done == self._total:
            self._last_line = now
            left_s = (now - self._began) / self._done * (self._total - self._done)
            line = f"{self._done} of {self._total} {self._unit}s, {tokens_per_s:.1f} tokens/s, {left_s:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
