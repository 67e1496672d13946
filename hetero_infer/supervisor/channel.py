"""`WorkerChannel`: the worker's half of its channel to the supervisor. Standard library only, no asyncio.

JSON lines over a socket that the supervisor passed by number; ``docs/supervisor.md`` has the protocol. When the socket
ends, the supervisor is dead, and the worker with it: at once, whatever its other threads wait for.

    channel = WorkerChannel.from_environment()      # first thing: the heartbeat covers importing and loading
    channel.send({"event": "ready"})
    while (command := channel.receive())["command"] != "shutdown": …
"""

import json
import os
import queue
import socket
import threading
import time
from typing import Any, NoReturn

from hetero_infer.supervisor.pulse import BEAT_S

CHANNEL_VARIABLE = "HETERO_INFER_CHANNEL_FD"


class WorkerChannel:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="channel-reader", daemon=True).start()
        threading.Thread(target=self._beat, name="channel-heartbeat", daemon=True).start()

    @classmethod
    def from_environment(cls) -> "WorkerChannel":
        connection = socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE)))
        connection.set_inheritable(False)  # a child of ours must not keep it open
        return cls(connection)

    def send(self, message: dict[str, Any]) -> None:
        """From any thread."""
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                self._connection.sendall(line)
        except OSError:
            _die_with_the_supervisor()

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next command; None if none came within `timeout_s`. Without a timeout it waits."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _read(self) -> None:
        try:
            for line in self._connection.makefile("rb"):
                self._commands.put(json.loads(line))
        finally:
            _die_with_the_supervisor()

    def _beat(self) -> None:
        while True:
            self.send({"event": "heartbeat"})
            time.sleep(BEAT_S)


def _die_with_the_supervisor() -> NoReturn:
    os._exit(1)
