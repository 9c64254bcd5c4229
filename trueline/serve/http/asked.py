"""What a client may send: OpenAI's fields, ours beside them. An unknown field is refused by name.

Fields under "passes" change nothing in the answer. Fields under "must be null" are OpenAI's that are not built here: they may be
null, as clients send them. Names of ours are those of Hugging Face and vLLM: top_k, min_p, repetition_penalty, num_beams,
length_penalty, prompt_lookup_num_tokens, stop_token_ids, priority, return_token_ids.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
ManyTokenIds = Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Digits = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Strict(BaseModel):
    """No unknown fields, no "3" for 3, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool = False


class JsonSchema(Strict):
    """What an answer must be, as a JSON schema."""

    name: str = Field(default="answer", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class AnyText(Strict):
    """No constraint."""

    type: Literal["text"]


class AnyJson(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class FittingJson(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class Asked(Strict):
    """What completions and chat have in common."""

    model: str | None = Field(default=None, description="A name of /v1/models; without one, the base model.")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[Digits, Bias] | None = None
    n: int = Field(default=1, ge=1, le=1024)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1, description="Without one, every request draws anew.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    response_format: AnyText | AnyJson | FittingJson | None = Field(default=None, discriminator="type")
    # ours
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    regex: str | None = Field(default=None, min_length=1, description="The whole answer matches this expression.")
    grammar: str | None = Field(default=None, min_length=1, description="The whole answer follows this Lark grammar.")
    num_beams: int = Field(default=0, ge=0, le=64, description="Beam search of this width; 0 draws.")
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    prompt_lookup_num_tokens: int = Field(default=0, ge=0, le=64, description="Speculative decoding by prompt lookup.")
    priority: int = Field(default=0, ge=-1000, le=0, description="Below 0: after the others. Nobody can go before them.")
    return_token_ids: bool = Field(default=False, description="Also the ids of prompt and answer.")
    # passes
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionAsked(Asked):
    """POST /v1/completions."""

    prompt: str | Texts | TokenIds | ManyTokenIds
    best_of: int | None = Field(default=None, ge=1, le=1024)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=16, ge=0, le=2**31 - 1)
    # must be null
    suffix: None = None


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class AskedMessage(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    # must be null
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChatAsked(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[AskedMessage], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    # passes
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    # must be null
    audio: None = None
    function_call: None = None
    functions: None = None
    prediction: None = None
    reasoning_effort: None = None
    tools: None = None
    verbosity: None = None
    web_search_options: None = None


class EmbeddingAsked(Strict):
    """POST /v1/embeddings."""

    input: str | Texts | TokenIds | ManyTokenIds
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    # must be null
    dimensions: None = None
