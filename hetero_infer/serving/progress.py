"""`Progress`: how far a batch is, on stderr. A bar on a terminal, else a line every few seconds."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 5.0


class Progress:
    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, unit="request", file=sys.stderr) if sys.stderr.isatty() else None

    def advance(self, new_tokens: int) -> None:
        """One more request is done; `new_tokens` of all so far."""
        self._done += 1
        now = time.monotonic()
        tokens_per_s = new_tokens / max(now - self._began, 1e-9)
        if self._bar:
            self._bar.set_postfix_str(f"{tokens_per_s:.1f} tokens/s", refresh=False)
            self._bar.update()
        elif now - self._last_line >= LINE_EVERY_S or self._done == self._total:
            self._last_line = now
            left_s = (now - self._began) / self._done * (self._total - self._done)
            line = f"{self._done} of {self._total} requests, {tokens_per_s:.1f} tokens/s, {left_s:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
