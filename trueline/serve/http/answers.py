"""Orders to answers: runs a ticket to its end, whole or as a stream of server-sent events.

    answer(order, worker, form) -> dict                   once all responses have ended
    stream(order, worker, form) -> pieces of bytes        data: {chunk} ... data: {usage} data: [DONE]

`Form` is what differs between completions and chat. A ticket is closed whatever happens, and with it what still runs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from trueline.serve.http.choices import Choice, Delta, chat_logprobs, completion_logprobs, whole
from trueline.serve.http.errors import Refusal, dumps
from trueline.serve.http.orders import Order
from trueline.serve.http.vocabulary import Offsets, Vocabulary
from trueline.serve.http.worker import Arrived, Ticket, Worker
from trueline.serve.request import PromptScores

DONE = b"data: [DONE]\n\n"
REASONS = ("stop", "length")
"""Ends of a response that OpenAI's protocol knows. Those that are cancelled have no reader."""
Made = dict[str, Any]


class Form:
    """What completions and chat write differently."""

    def __init__(self, order: Order, vocabulary: Vocabulary, *, chat: bool, logprobs: bool, tops: bool, token_ids: bool) -> None:
        self.order, self.vocabulary, self.chat = order, vocabulary, chat
        self.logprobs, self.tops, self.token_ids = logprobs, tops, token_ids
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._offsets: dict[int, Offsets] = {}

    def frame(self, choices: list[Made], *, chunk: bool, **more: Any) -> Made:
        """An answer, or a chunk of one."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.order.model, "choices": choices, **more}

    def choice(self, index: int, prompt: int, delta: Delta, *, chunk: bool) -> Made:
        """One response, or what is new of it."""
        made: Made = {"index": index, "logprobs": self._logprobs(index, prompt, delta), "finish_reason": delta.reason}
        if not self.chat:
            made["text"] = delta.text
        elif chunk:
            made["delta"] = {"content": delta.text} if delta.text or delta.reason is None else {}
        else:
            made["message"] = {"role": "assistant", "content": delta.text, "refusal": None}
        if self.token_ids:
            made["token_ids"] = list(delta.ids)
            if not self.chat and not chunk:
                made["prompt_token_ids"] = self.order.prompts[prompt].tolist()
        return made

    def opening(self, indices: range) -> list[Made]:
        """The choices of the first chunk of a stream: roles in a chat, prompts where ids are wanted."""
        if self.chat:
            first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            return [{"index": index, **first} for index in indices]
        if not self.token_ids:
            return []
        shown = self.order.shown
        ids = [prompt.tolist() for prompt in self.order.prompts]
        empty: Made = {"text": "", "logprobs": None, "finish_reason": None, "token_ids": []}
        return [{"index": index, **empty, "prompt_token_ids": ids[index // shown]} for index in indices]

    def prompt_ids(self) -> Made:
        """A chat's prompt, beside its choices."""
        return {"prompt_token_ids": self.order.prompts[0].tolist()} if self.chat and self.token_ids else {}

    def _logprobs(self, index: int, prompt: int, delta: Delta) -> Made | None:
        if not self.logprobs or not delta.ids:
            return None
        if self.chat:
            return chat_logprobs(delta, self.vocabulary)
        offsets = self._offsets.setdefault(index, Offsets(self.vocabulary))
        return completion_logprobs(delta, self.vocabulary, offsets, self.tops)


class Run:
    """One order at the engine."""

    def __init__(self, order: Order, worker: Worker, form: Form) -> None:
        self.order, self.worker, self.form = order, worker, form
        self.ticket = Ticket(order.prompts, order.sampling, order.options)
        self.per_prompt = order.sampling.n
        self.total = len(order.prompts) * self.per_prompt
        self.choices: dict[int, Choice] = {}
        self.ended = 0
        self._scores: dict[int, PromptScores] = {}

    def close(self) -> None:
        """Gives back what the order holds."""
        if not self.ticket.is_open:
            return
        self.worker.close(self.ticket, finished=self.ended == self.total)
        self.worker.meters.request.observe(time.monotonic() - self.ticket.arrived)

    async def begin(self) -> None:
        """Hands the order over; raises the engine's refusal."""
        self.worker.open(self.ticket)
        await self.ticket.wait_accepted()

    async def deltas(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        """(number of the response, what is new of it), as many as there are, until all have ended."""
        while self.ended < self.total:
            found = [one for one in map(self._read, await self.ticket.take()) if one is not None]
            if found:
                yield found

    def _read(self, arrived: Arrived) -> tuple[int, Delta] | None:
        number, event = arrived
        if event.prompt is not None:
            self._scores[number] = event.prompt
            return None
        index = number * self.per_prompt + event.response
        order = self.order
        if index not in self.choices:
            self.choices[index] = Choice(
                index, order.prompts[number], self.form.vocabulary, order.sampling.stop,
                echo=order.echo, drop=order.drop, chat=self.form.chat,
            )  # fmt: skip
        delta = self.choices[index].feed(event, self._scores.get(number))
        if event.sample is not None:
            self.ended += 1
            if event.sample.finish_reason not in REASONS:
                raise Refusal(400, "the answer cannot follow its constraint any further: simplify the schema, expression or grammar")
        return None if delta is None else (index, delta)

    def usage(self) -> Made:
        """Tokens read and drawn."""
        prompt = sum(map(len, self.order.prompts))
        drawn = 0 if self.order.drop else sum(choice.drawn for choice in self.choices.values())
        return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}

    def best(self) -> Iterator[tuple[int, int]]:
        """(number of the response, number of its prompt) of those to be shown: per prompt the likeliest per token."""
        for number in range(len(self.order.prompts)):
            indices = list(range(number * self.per_prompt, (number + 1) * self.per_prompt))
            if self.order.shown < self.per_prompt:
                indices.sort(key=lambda i: -self.choices[i].logp / max(1, self.choices[i].drawn))
            yield from ((index, number) for index in indices[: self.order.shown])


async def answer(order: Order, worker: Worker, form: Form) -> Made:
    """The whole answer."""
    run = Run(order, worker, form)
    try:
        await run.begin()
        found: dict[int, list[Delta]] = {}
        async for some in run.deltas():
            for index, delta in some:
                found.setdefault(index, []).append(delta)
        choices = [form.choice(place, number, whole(found[index]), chunk=False) for place, (index, number) in enumerate(run.best())]
        return form.frame(choices, chunk=False, usage=run.usage(), **form.prompt_ids())
    finally:
        run.close()


async def stream(run: Run, include_usage: bool, deadline: Callable[[], Any]) -> AsyncIterator[bytes]:
    """The answer in chunks, after `begin`. What goes wrong now is told in the stream."""
    form = run.form
    usage: Made = {"usage": None} if include_usage else {}
    try:
        async with deadline():
            opening = form.opening(range(run.total))
            if opening:
                yield event(form.frame(opening, chunk=True, **usage, **form.prompt_ids()))
            async for some in run.deltas():
                yield b"".join(
                    event(form.frame([form.choice(index, index // run.per_prompt, delta, chunk=True)], chunk=True, **usage))
                    for index, delta in some
                )
            if include_usage:
                yield event(form.frame([], chunk=True, usage=run.usage()))
            yield DONE
    except Refusal as refusal:
        yield event(refusal.content)
    except TimeoutError:
        yield event(Refusal(408, "the request took longer than this server allows: ask for fewer tokens").content)
    finally:
        run.close()


def event(content: Made) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(content) + b"\n\n"
