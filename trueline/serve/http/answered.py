"""The shapes of answers, for the OpenAPI description. Answers are made as plain dicts (answers.py): checking them costs time."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """Nothing beyond the named fields."""

    model_config = ConfigDict(extra="forbid")


class Error(Shape):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Shape):
    """Every answer that is no success."""

    error: Error


class Usage(Shape):
    """Tokens; a prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Shape):
    """One entry per token, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Shape):
    """One response."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(Shape):
    """Of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TokenLogprob(Shape):
    """One of the likeliest tokens of a place."""

    token: str
    logprob: float
    bytes: list[int]


class PlaceLogprob(TokenLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    """Of one response."""

    content: list[PlaceLogprob]
    refusal: None


class ChatMessage(Shape):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """One response."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None


class Chat(Shape):
    """Of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None


class Embedding(Shape):
    """Of one input; base64 is of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Shape):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Shape):
    """Of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(Shape):
    """The base model, or one of its adapters."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(Shape):
    """Of /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Health(Shape):
    """Of /health."""

    status: Literal["ok"]
