"""`Transcript`: the tokens of one sequence as they come, the text they make, and where a stop string ends it."""

from collections.abc import Sequence

from hetero_infer.serving.tokenizer import NO_CHARACTER, Tokenizer

CONTEXT_TOKENS = 6  # of the prompt: whether a token brings a space with it may depend on what stands before


class Transcript:
    """`text` grows by whole characters: bytes of one that is not complete wait for the next token.

    Only the tokens since the last growth, and those that made it, are decoded again. Without a tokenizer there is no
    text. Once `is_stopped`, a stop string was complete, and `text` ends before it.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.tokens: list[int] = []
        self.is_stopped = False
        self._offsets: list[int] = []
        self._stop = stop
        self._longest_stop = max(map(len, stop), default=0)
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._num_read = len(self._window)
        self._read = tokenizer.decode(self._window).rstrip(NO_CHARACTER) if tokenizer else ""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of each token, how much of `text` was there before it."""
        return tuple(min(offset, len(self.text)) for offset in self._offsets)

    def add(self, token: int) -> None:
        self._offsets.append(len(self.text))
        self.tokens.append(token)
        self._window.append(token)
        self._grow(may_be_incomplete=False)

    def finish(self) -> None:
        """No token comes any more: what is incomplete stays so."""
        self._grow(may_be_incomplete=True)

    def _grow(self, may_be_incomplete: bool) -> None:
        if self._tokenizer is None:
            return
        whole = self._tokenizer.decode(self._window)
        if len(whole) <= len(self._read) or (whole.endswith(NO_CHARACTER) and not may_be_incomplete):
            return
        search_from = max(0, len(self.text) - self._longest_stop + 1)
        self.text += whole[len(self._read) :]
        newest = self._window[self._num_read :]
        text_of_newest = self._tokenizer.decode(newest)
        if text_of_newest.strip():
            self._window, self._read = newest, text_of_newest
        else:  # of a window that is all blank, a tokenizer may drop the next space as well
            self._read = whole
        self._num_read = len(self._window)
        found = [start for stop in self._stop if (start := self.text.find(stop, search_from)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.is_stopped = True
