"""`LayerProgress`: how far the quantise step is, on stderr. A bar on a terminal, else a line every few seconds."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 5.0


class LayerProgress:
    """Of `total` layers; without `shown`, remarks only."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total = total
        self._done = 0
        self._shown = shown
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, desc="quantise", unit="layer", disable=None if shown else True)
        self._remarks: set[str] = set()

    def advance(self, made: str) -> None:
        """One more is done, `made` being its name."""
        self._done += 1
        now = time.monotonic()
        self._bar.set_postfix_str(made, refresh=False)
        self._bar.update()
        due = now - self._last_line >= LINE_EVERY_S or self._done == self._total
        if self._shown and self._bar.disable and due:
            self._last_line = now
            left_s = (now - self._began) / self._done * (self._total - self._done)
            print(f"quantised {self._done} of {self._total} layers, {left_s:.0f} s left", file=sys.stderr, flush=True)

    def remark(self, text: str) -> None:
        """A line of its own, said once."""
        if text not in self._remarks:
            self._remarks.add(text)
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
