"""`Pulse`: is the other side still there? Counts our own seconds, so a machine that slept accuses nobody."""

BEAT_S = 1.0


class Pulse:
    """`tick` once per `BEAT_S`, `heard` at every message; silent after `silence_s` of ticks without one."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self._missed = 0

    def heard(self) -> None:
        self._missed = 0

    def tick(self) -> None:
        self._missed += 1

    @property
    def is_silent(self) -> bool:
        return self._missed * BEAT_S > self.silence_s
