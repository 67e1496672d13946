"""The HTTP front: OpenAI's endpoints over one pipeline, or replicas of it. `ServeJob` runs it inside the supervisor of
rank 0."""

import asyncio
import contextlib
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from hetero_infer.serving.endpoint import ENDPOINTS, Endpoint
from hetero_infer.serving.engine_client import EngineClient, Pipeline, PipelineLost
from hetero_infer.serving.request import RequestError
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec import HeteroInferError, InputError, RunConfig

GRACEFUL_S = 1


def build_app(engine: EngineClient, model: ServedModel) -> Starlette:
    def serve(endpoint: Endpoint) -> Route:
        async def complete(http: HttpRequest) -> JSONResponse:
            try:
                body = await http.json()
            except (ValueError, RecursionError) as error:
                raise RequestError(f"the body is not JSON ({error})") from error
            completion = await engine.complete(endpoint.parse(body, model))
            return JSONResponse(endpoint.answer(completion, model, f"{endpoint.id_prefix}-{uuid.uuid4().hex}"))

        return Route(endpoint.url, complete, methods=["POST"])

    async def models(http: HttpRequest) -> JSONResponse:
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "hetero-infer"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(http: HttpRequest) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            *map(serve, ENDPOINTS.values()),
            Route("/v1/models", models),
            Route("/health", health),
        ],
        exception_handlers={
            RequestError: lambda http, error: _error(400, str(error), error.field),
            PipelineLost: lambda http, error: _error(503, str(error)),
            HTTPException: lambda http, error: _error(error.status_code, f"{http.url.path}: {error.detail}"),
            Exception: lambda http, error: _error(500, repr(error)),
        },
    )


def _error(status: int, message: str, field: str | None = None) -> JSONResponse:
    """OpenAI's error shape. What UTF-8 cannot hold, half a surrogate pair in a field's name, becomes an escape."""
    message, field = (text and text.encode("utf-8", "backslashreplace").decode() for text in (message, field))
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": field, "code": None}}, status)


class ServeJob:
    """Serves until it is cancelled: Ctrl-C is the ordinary end."""

    exit_code_if_interrupted = 0

    def open(self, config: RunConfig) -> None:
        """Takes the port before anything is planned, but answers only once the pipeline is ready."""
        self._config = config
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            self._socket = socket.create_server((config.host, config.port), family=family)
        except OSError as error:
            raise InputError(
                f"cannot serve on {config.host}:{config.port} ({error.strerror or error}); "
                "choose another host or port under [server] in the config"
            ) from error

    async def run(self, pipelines: Sequence[Pipeline]) -> None:
        # In a thread: loading must not keep the supervisor from its heartbeats.
        model = await asyncio.to_thread(ServedModel.load, self._config.model, pipelines[0].plan)
        engine = EngineClient(pipelines, model)
        server = _Server(
            uvicorn.Config(
                build_app(engine, model),
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACEFUL_S,
            )
        )
        generating = asyncio.create_task(engine.run())
        serving = asyncio.create_task(server.serve([self._socket]))
        host, port = self._socket.getsockname()[:2]
        print(f"ready on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
        try:
            ended, _ = await asyncio.wait({generating, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            generating.cancel()
            server.should_exit = True
            await asyncio.wait({generating, serving})
        for task in ended:
            task.result()
        raise HeteroInferError("the HTTP server ended by itself")


class _Server(uvicorn.Server):
    """Signals belong to the supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
