"""What a request can ask for beyond drawing reaches the engine, and what the engine says of it reaches the client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.serve.serving import Live, Told, live
from trueline.models.decoder import Decoder
from trueline.records import Sampling
from trueline.serve.http.asked import ChatAsked, CompletionAsked
from trueline.serve.http.choices import Choice, whole
from trueline.serve.http.limits import Limits
from trueline.serve.http.orders import Served, chat_order, completion_order
from trueline.serve.http.vocabulary import Offsets, Vocabulary
from trueline.serve.request import Constraint, Event, Options
from trueline.tokens.tokenizer import Tokenizer

TEXT = "The café — sum."


@pytest.fixture(scope="module")
def engine(model: Decoder, tokenizer: Tokenizer) -> Told:
    return Told(model, tokenizer.encode(TEXT))


@pytest.fixture(scope="module")
def server(engine: Told, tokenizer: Tokenizer) -> Iterator[Live]:
    with live(engine, tokenizer) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def served(tokenizer: Tokenizer) -> Served:
    return Served(tokenizer=tokenizer, names={"tiny": "", "law": "law"}, vocab_size=320, context=96, limits=Limits())


def test_all_fields_reach_the_engine(served: Served, tokenizer: Tokenizer) -> None:
    asked = CompletionAsked.model_validate({
        "model": "law", "prompt": "a", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "n": 2, "best_of": 3,
        "stop": ["x", "<|im_end|>"], "stop_token_ids": [9], "seed": -3, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "repetition_penalty": 1.5, "logit_bias": {"7": -100, "8": 2.5}, "logprobs": 4, "echo": True, "regex": "a+",
        "prompt_lookup_num_tokens": 3, "priority": -1, "user": "me",
    })  # fmt: skip
    order = completion_order(asked, served, "10.0.0.1")
    stops = tuple(sorted({9, tokenizer.control["<|im_end|>"], *tokenizer.stop_ids}))
    assert order.sampling == Sampling(
        max_new_tokens=7, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, n=3, stop=("x",), stop_ids=stops, seed=-3,
        repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=((7, -100.0), (8, 2.5)),
    )  # fmt: skip
    assert order.options == Options(
        top_logps=4, prompt_logps=True, constraint=Constraint("regex", "a+"), lookup=3, priority=-1, client="10.0.0.1", adapter="law"
    )
    assert (order.shown, order.echo, order.drop) == (2, True, False)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json")),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string"}}},
            Constraint("json_schema", '{"type": "string"}'),
        ),
    ],
)
def test_response_formats(served: Served, form: dict[str, Any], expected: Constraint | None) -> None:
    asked = ChatAsked.model_validate({"messages": [{"role": "user", "content": "a"}], "response_format": form})
    assert chat_order(asked, served, "").options.constraint == expected


def test_a_chat_may_go_on_to_the_end_of_the_context(served: Served) -> None:
    asked = ChatAsked.model_validate({"messages": [{"role": "user", "content": "a"}]})
    order = chat_order(asked, served, "")
    assert order.sampling.max_new_tokens == 96 - len(order.prompts[0])


def test_likeliest_tokens(client: openai.OpenAI, engine: Told, tokenizer: Tokenizer) -> None:
    found = client.chat.completions.create(
        model="law", messages=[{"role": "user", "content": "a"}], logprobs=True, top_logprobs=3, seed=1, max_tokens=4
    )
    assert engine.asked[-1][2] == Options(top_logps=3, client="127.0.0.1", adapter="law")
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    for place, token in zip(found.choices[0].logprobs.content, tokenizer.encode(TEXT), strict=False):
        assert [one.logprob for one in place.top_logprobs] == [-0.5, -1.5, -2.5]
        assert place.top_logprobs[0].token == place.token == Vocabulary(tokenizer).name(token)


def test_echo_scores_the_prompt(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """As lm-evaluation-harness asks: the prompt's tokens, then one more. The first token has no log-prob."""
    ids = tokenizer.encode("Return the values")
    found = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234)
    for choice in found.choices:
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None and choice.logprobs.top_logprobs is not None
        assert choice.logprobs.token_logprobs == [None, *(-float(i) for i in range(1, len(ids))), -2.0]
        assert choice.logprobs.top_logprobs[0] is None
        assert all(len(tops) in (1, 2) for tops in choice.logprobs.top_logprobs[1:])
        assert choice.logprobs.tokens is not None and choice.logprobs.text_offset is not None
        assert choice.text == "Return the values" + choice.logprobs.tokens[-1]
        for token, place in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            assert choice.text[place:].startswith(token)
    scored = client.completions.create(model="tiny", prompt=ids, max_tokens=0, logprobs=0, echo=True)
    assert scored.choices[0].text == "Return the values" and scored.choices[0].finish_reason == "length"
    assert scored.choices[0].logprobs is not None and len(scored.choices[0].logprobs.tokens or ()) == len(ids)
    assert scored.usage is not None and scored.usage.completion_tokens == 0
    pieces = [
        chunk.choices[0] for chunk in client.completions.create(model="tiny", prompt=ids, max_tokens=2, logprobs=0, echo=True, stream=True)
    ]
    assert "".join(piece.text for piece in pieces).startswith("Return the values")
    assert sum(len(piece.logprobs.tokens or ()) for piece in pieces if piece.logprobs) == len(ids) + 2


def test_best_of(client: openai.OpenAI, engine: Told) -> None:
    """The likeliest per token, here the second, first."""
    found = client.completions.create(model="tiny", prompt="a", best_of=3, n=2, max_tokens=4, logprobs=0)
    assert engine.asked[-1][1].n == 3 and [choice.index for choice in found.choices] == [0, 1]
    firsts = [choice.logprobs.token_logprobs[0] for choice in found.choices if choice.logprobs and choice.logprobs.token_logprobs]
    assert firsts == [-1.0, -2.0]
    assert found.usage is not None and found.usage.completion_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
def test_beam_search_answers_at_the_end(client: openai.OpenAI, engine: Told, stream: bool) -> None:
    """Its hypotheses come whole, in the engine's order."""
    body = {"num_beams": 4, "length_penalty": 0.5}
    found = client.completions.create(model="tiny", prompt="a", n=2, max_tokens=20, logprobs=0, extra_body=body, stream=stream)
    assert (engine.asked[-1][2].beams, engine.asked[-1][2].length_penalty) == (4, 0.5)
    choices = [chunk.choices[0] for chunk in found] if stream else found.choices
    assert [choice.text for choice in choices] == [TEXT, TEXT]
    assert [choice.logprobs.token_logprobs[0] for choice in choices] == [-2.0, -1.0]


def test_pieces_and_offsets(tokenizer: Tokenizer) -> None:
    """A stop string over several tokens is held back and never shown; the tokens that spell it are counted all the same."""
    vocabulary, ids = Vocabulary(tokenizer), tokenizer.encode(TEXT)
    for stop, expected in (("— s", "The café "), ("zz", TEXT)):
        found = Told(None, ids, stop=True)  # type: ignore[arg-type]
        found.submit(np.array([1]), Sampling(max_new_tokens=100, stop=(stop,)))
        choice = Choice(0, np.array([1]), vocabulary, (stop,), echo=False, drop=False, chat=True)
        events: list[Event] = []
        while found.busy:
            events += found.step()
        deltas = [delta for event in events if (delta := choice.feed(event, None))]
        for delta in deltas:
            assert expected.startswith(whole([*deltas[: deltas.index(delta) + 1]]).text)
        assert whole(deltas).text == expected and whole(deltas).ids == tuple(ids)
    offsets = Offsets(vocabulary)
    assert [offsets.push(token) for token in tokenizer.encode("é—a")][-1] == 2


def test_names_of_tokens_are_their_bytes(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode("naïve — 世界\n")
    assert b"".join(map(vocabulary.bytes_of, ids)).decode() == "naïve — 世界\n"
    assert any(vocabulary.name(token).startswith("bytes:\\x") for token in ids)
    assert vocabulary.name(tokenizer.control["<|im_end|>"]) == "<|im_end|>"


def test_a_step_that_fails_is_told_and_survived(model: Decoder, tokenizer: Tokenizer) -> None:
    failing = [True]

    def fail() -> None:
        if failing:
            raise ValueError("the weights are broken")

    engine = Told(model, tokenizer.encode(TEXT), step=fail)
    with live(engine, tokenizer) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="the engine failed: the weights are broken") as caught:
            client.completions.create(model="tiny", prompt="a")
        assert caught.value.status_code == 503
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(client.completions.create(model="tiny", prompt="a", stream=True))
        failing.clear()
        assert client.completions.create(model="tiny", prompt="a").choices[0].text
        assert server.metric("trueline_engine_failures_total") == 2
