"""Requests to what the engine is asked for: prompts as ids, Sampling, Options. Every refusal is one sentence. No torch."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.records import TEXT, Message, Sampling
from trueline.serve.http.asked import AnyJson, Asked, AskedMessage, ChatAsked, CompletionAsked, FittingJson
from trueline.serve.http.errors import Refusal
from trueline.serve.http.limits import Limits
from trueline.serve.request import Constraint, Options, check_prompt
from trueline.tokens.encode import encode_prompt
from trueline.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Served:
    """What there is to ask: one base model, its adapters, and the limits."""

    tokenizer: Tokenizer
    names: Mapping[str, str]
    """Name in requests -> name of the adapter; "" is the base model."""
    vocab_size: int
    context: int
    limits: Limits

    @property
    def base(self) -> str:
        """The name of the base model."""
        return next(name for name, adapter in self.names.items() if not adapter)

    def adapter(self, model: str | None) -> str:
        """The adapter that a request names."""
        name = self.base if model is None else model
        if name not in self.names:
            raise Refusal(
                404, f"there is no model {name!r}: this server has {', '.join(self.names)}", param="model", code="model_not_found"
            )
        return self.names[name]


@dataclass(frozen=True)
class Order:
    """A request, ready for the engine."""

    prompts: list[np.ndarray]
    sampling: Sampling
    options: Options
    shown: int
    """Responses per prompt that the client gets: the best of the `sampling.n`."""
    model: str
    echo: bool = False
    drop: bool = False
    """max_tokens is 0: nothing is drawn, and what is drawn all the same is not shown."""


Prompts = str | list[str] | list[int] | list[list[int]]


def encoded(prompts: Prompts, served: Served) -> list[np.ndarray]:
    """A text, texts, ids or lists of ids as arrays of ids, each within the limits."""
    several: Sequence[Any] = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
    found = []
    for number, prompt in enumerate(several):
        name = "the prompt" if len(several) == 1 else f"prompt {number}"
        ids = encode_prompt((Message(role=TEXT, content=prompt),), served.tokenizer) if isinstance(prompt, str) else prompt
        found.append(checked(ids, served, name))
    return found


def checked(ids: Sequence[int] | np.ndarray, served: Served, name: str = "the prompt") -> np.ndarray:
    """The prompt as int32 [P], refused when it is too long or no prompt."""
    most = served.limits.max_prompt_tokens
    if most and len(ids) > most:
        raise Refusal(400, f"{name} has {len(ids)} tokens, but this server takes {most}: shorten it", code="context_length_exceeded")
    return check_prompt(ids, served.vocab_size, served.context, name)


def completion_order(asked: CompletionAsked, served: Served, client: str) -> Order:
    """Of POST /v1/completions."""
    adapter, best_of = served.adapter(asked.model), asked.best_of or asked.n
    if best_of < asked.n:
        raise Refusal(400, f"best_of is {best_of}: it must be at least n, {asked.n}", param="best_of")
    if best_of > asked.n and asked.stream:
        raise Refusal(400, "the best of several responses is known only at the end: leave out stream or best_of", param="best_of")
    if best_of > asked.n and asked.num_beams:
        raise Refusal(400, "best_of draws and num_beams searches: leave one of them out", param="best_of")
    prompts = encoded(asked.prompt, served)
    drawing = sampling(asked, served, prompts, asked.max_tokens, best_of)
    if asked.logprobs is not None:
        check_logprobs(prompts, drawing, asked.logprobs, asked.echo, served)
    return Order(
        prompts,
        drawing,
        options(asked, asked.logprobs or 0, asked.echo and asked.logprobs is not None, adapter, client),
        shown=asked.n,
        model=asked.model or served.base,
        echo=asked.echo,
        drop=asked.max_tokens == 0,
    )


def chat_order(asked: ChatAsked, served: Served, client: str) -> Order:
    """Of POST /v1/chat/completions."""
    adapter = served.adapter(asked.model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: set logprobs to true", param="top_logprobs")
    if None not in (asked.max_tokens, asked.max_completion_tokens) and asked.max_tokens != asked.max_completion_tokens:
        raise Refusal(400, "max_tokens and max_completion_tokens differ: leave out max_tokens, the older name", param="max_tokens")
    prompt = checked(encode_prompt([message(one) for one in asked.messages], served.tokenizer), served)
    drawing = sampling(asked, served, [prompt], asked.max_completion_tokens or asked.max_tokens, asked.n)
    if asked.logprobs:
        check_logprobs([prompt], drawing, asked.top_logprobs or 0, False, served)
    return Order(
        [prompt],
        drawing,
        options(asked, asked.top_logprobs or 0, False, adapter, client),
        shown=asked.n,
        model=asked.model or served.base,
    )


def message(asked: AskedMessage) -> Message:
    """One turn; what OpenAI's newer models call developer is the system's turn here."""
    content = asked.content if isinstance(asked.content, str) else "".join(part.text for part in asked.content)
    return Message(role="system" if asked.role == "developer" else asked.role, content=content, name=asked.name)


def sampling(asked: Asked, served: Served, prompts: Sequence[np.ndarray], most: int | None, n: int) -> Sampling:
    """How to draw; `most` new tokens (None: what the limits and the context leave)."""
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(400, "stream_options needs stream: set stream to true", param="stream_options")
    if asked.num_beams:
        check_beams(asked, n)
    limits, room = served.limits, served.context - min(map(len, prompts))
    if limits.max_tokens and most is not None and most > limits.max_tokens:
        raise Refusal(400, f"max_tokens is {most}, but this server draws at most {limits.max_tokens}: ask for fewer", param="max_tokens")
    if len(prompts) * max(n, asked.num_beams) > limits.max_responses:
        many = f"{len(prompts)} prompts with {max(n, asked.num_beams)} responses each"
        raise Refusal(400, f"{many} are more than {limits.max_responses} in one request: send fewer", param="n")
    stops = () if asked.stop is None else (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)
    control = served.tokenizer.control  # a control token has no text: as a stop it is its id
    ids = [*(control[stop] for stop in stops if stop in control), *(asked.stop_token_ids or ())]
    return Sampling(
        max_new_tokens=max(1, min(room, limits.max_tokens or room) if most is None else most),
        temperature=float(asked.temperature),
        top_k=asked.top_k,
        top_p=float(asked.top_p),
        min_p=float(asked.min_p),
        n=n,
        stop=tuple(stop for stop in stops if stop not in control),
        stop_ids=tuple(sorted({*ids, *served.tokenizer.stop_ids})) if ids else (),
        seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        repetition_penalty=float(asked.repetition_penalty),
        presence_penalty=float(asked.presence_penalty),
        frequency_penalty=float(asked.frequency_penalty),
        logit_bias=tuple((int(token), float(bias)) for token, bias in (asked.logit_bias or {}).items()),
    )


def check_beams(asked: Asked, n: int) -> None:
    """Refuses what a beam search cannot do."""
    if n > asked.num_beams:
        raise Refusal(400, f"n is {n}: it must not exceed num_beams, {asked.num_beams}", param="n")
    top = asked.logprobs if isinstance(asked, CompletionAsked) else asked.top_logprobs if isinstance(asked, ChatAsked) else 0
    others = {
        "stop": asked.stop,
        "prompt_lookup_num_tokens": asked.prompt_lookup_num_tokens,
        "response_format, regex and grammar": constraint(asked),
        "logprobs above 0": top,
    }
    for name, value in others.items():
        if value:
            raise Refusal(400, f"a beam search goes without {name}: leave out that, or num_beams", param="num_beams")


def check_logprobs(prompts: Sequence[np.ndarray], drawing: Sampling, top: int, echo: bool, served: Served) -> None:
    """Refuses an answer that would fill the memory: each log-prob is an object while the answer is made."""
    tokens = sum(drawing.n * min(drawing.max_new_tokens, served.context - len(prompt)) + echo * len(prompt) for prompt in prompts)
    most = served.limits.max_logprobs
    if tokens * (1 + top) > most:
        raise Refusal(400, f"up to {tokens * (1 + top):,} log-probs are more than {most:,} in one answer: send less", param="logprobs")


def options(asked: Asked, top: int, prompt_logps: bool, adapter: str, client: str) -> Options:
    """What is asked for beyond drawing."""
    return Options(
        top_logps=top,
        prompt_logps=prompt_logps,
        constraint=constraint(asked),
        beams=asked.num_beams,
        length_penalty=float(asked.length_penalty),
        lookup=asked.prompt_lookup_num_tokens,
        priority=asked.priority,
        client=client,
        adapter=adapter,
    )


def constraint(asked: Asked) -> Constraint | None:
    """What the answer must follow; one thing at most."""
    form = asked.response_format
    given = []
    if isinstance(form, AnyJson):
        given.append(Constraint("json"))
    if isinstance(form, FittingJson):
        given.append(Constraint("json_schema", json.dumps(form.json_schema.schema_)))
    if asked.regex is not None:
        given.append(Constraint("regex", asked.regex))
    if asked.grammar is not None:
        given.append(Constraint("grammar", asked.grammar))
    if len(given) > 1:
        raise Refusal(400, "an answer can follow one of response_format, regex and grammar: leave the others out", param=given[1].kind)
    return given[0] if given else None
