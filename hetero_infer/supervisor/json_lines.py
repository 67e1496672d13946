"""`JsonLines`: JSON objects, one a line, both ways, over an asyncio stream. Control link and worker channel use it."""

import asyncio
import contextlib
import json
import socket
from typing import Any

MAX_LINE_BYTES = 2**26


class JsonLines:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connection: socket.socket) -> "JsonLines":
        return cls(*await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES))

    @property
    def local_address(self) -> str:
        return self._writer.get_extra_info("sockname")[0]

    @property
    def remote_address(self) -> str:
        return self._writer.get_extra_info("peername")[0]

    def send(self, message: dict[str, Any]) -> None:
        """Never waits: messages are small and few. Into a connection that ended it writes nothing."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None once the connection ended, or when the other side speaks no JSON lines."""
        try:
            message = json.loads(await self._reader.readline())
        except (OSError, ValueError):  # an empty line is the end of the stream, and no JSON either
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        self._writer.close()

    async def flush_and_close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # a timeout is one, too
            await asyncio.wait_for(self._writer.wait_closed(), 1)
