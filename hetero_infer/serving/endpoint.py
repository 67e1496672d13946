"""What is served: where, how a body becomes a request, and how its completion is told. HTTP and batch files use it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hetero_infer.serving.completion import Completion, chat_completion_json, completion_json
from hetero_infer.serving.request import Request, parse_chat_request, parse_request
from hetero_infer.serving.served_model import ServedModel


@dataclass(frozen=True)
class Endpoint:
    url: str
    id_prefix: str
    parse: Callable[[object, ServedModel], Request]
    answer: Callable[[Completion, ServedModel, str], dict[str, Any]]


ENDPOINTS = {
    endpoint.url: endpoint
    for endpoint in (
        Endpoint("/v1/completions", "cmpl", parse_request, completion_json),
        Endpoint("/v1/chat/completions", "chatcmpl", parse_chat_request, chat_completion_json),
    )
}
