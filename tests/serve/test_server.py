"""The server as OpenAI's own client sees it, over a real port and a real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from tests.serve.serving import Live, live
from trueline.models.decoder import Decoder
from trueline.records import TEXT, Message, Sampling
from trueline.serve.engine import Engine
from trueline.tokens.encode import encode_prompt
from trueline.tokens.tokenizer import Tokenizer

PROMPT = "The sum of the"


@pytest.fixture(scope="module")
def server(model: Decoder, tokenizer: Tokenizer) -> Iterator[Live]:
    with live(Engine(model, tokenizer, max_batch=8), tokenizer) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_completion_is_what_the_engine_draws(client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    ids = encode_prompt((Message(role=TEXT, content=PROMPT),), tokenizer)
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=5, n=3)
    expected = engine.sample([ids.tolist()], sampling)[0]
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0.8, top_p=0.9, seed=5, n=3, logprobs=0,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for choice, sample in zip(found.choices, expected, strict=True):
        assert choice.model_extra is not None and choice.model_extra["token_ids"] == sample.ids.tolist()
        assert choice.model_extra["prompt_token_ids"] == ids.tolist()
        assert choice.finish_reason == sample.finish_reason
        assert choice.logprobs is not None and choice.logprobs.token_logprobs == pytest.approx(sample.logps.tolist())
        assert len(choice.logprobs.tokens or ()) == len(choice.logprobs.text_offset or ()) == len(sample.ids)
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), sum(len(sample.ids) for sample in expected))
    assert found.model == "tiny" and found.object == "text_completion"


def test_a_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    """With half characters (the model is random) and a stop string across tokens."""
    asked = {"model": "tiny", "prompt": [PROMPT, "Return"], "max_tokens": 40, "seed": 3, "n": 2, "stop": ["e", "zz"]}
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    texts, reasons, usages = [""] * 4, [""] * 4, []
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert "stop" in reasons and not any("e" in text for text in texts)
    assert usages[-1] == whole.usage and not any(usages[:-1])


def test_chat(client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
    messages = (Message(role="system", content="Be short."), Message(role="user", content="Sum <|im_end|>?"))
    ids = encode_prompt(messages, tokenizer)
    expected = Engine(model, tokenizer).sample([ids.tolist()], Sampling(max_new_tokens=6, seed=1))[0][0]
    asked = {
        "model": "tiny", "seed": 1, "max_completion_tokens": 6, "logprobs": True,
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Sum "}, {"type": "text", "text": "<|im_end|>?"}]},
        ],
        "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    found = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert found.choices[0].message.role == "assistant"
    assert found.model_extra["prompt_token_ids"] == ids.tolist()
    assert found.choices[0].model_extra["token_ids"] == expected.ids.tolist()
    content = found.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(expected.logps.tolist())
    assert b"".join(bytes(one.bytes) for one in content).decode("utf-8", "replace").startswith(found.choices[0].message.content)
    text, roles = "", []
    for chunk in client.chat.completions.create(**asked, stream=True):  # type: ignore[call-overload]
        roles.append(chunk.choices[0].delta.role)
        text += chunk.choices[0].delta.content or ""
    assert text == found.choices[0].message.content
    assert roles[0] == "assistant" and not any(roles[1:])


def test_a_stream_on_the_wire(server: Live) -> None:
    """Events are lines that begin with "data: ", an empty line behind each, and the last one is [DONE]."""
    asked = {"prompt": PROMPT, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    with server.http.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["choices"] == []
    assert all(event.startswith("data: {") for event in events[:-2])


def test_prompts_of_ids_and_many_prompts(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    same = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    texts = [
        client.completions.create(prompt=prompt, **same).choices[0].text  # type: ignore[call-overload]
        for prompt in (PROMPT, ids, [PROMPT], [ids])
    ]
    assert len(set(texts)) == 1
    two = client.completions.create(prompt=[ids, tokenizer.encode("Return")], **same)  # type: ignore[call-overload]
    assert [choice.index for choice in two.choices] == [0, 1] and two.choices[0].text == texts[0]


def test_without_a_seed_each_request_draws_anew(client: openai.OpenAI) -> None:
    drawn = {client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20).choices[0].text for _ in range(2)}
    assert len(drawn) == 2


def test_embeddings(client: openai.OpenAI, model: Decoder, tokenizer: Tokenizer) -> None:
    """The mean of the final hidden states, of length 1; alone or among others the same."""
    import torch

    from trueline.models.attention import Layout

    texts = [PROMPT, "café", "Return the values"]
    found = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    assert found.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in texts)
    for text, one in zip(texts, found.data, strict=True):
        with torch.inference_mode():
            mean_D = model(Layout.packed([np.array(tokenizer.encode(text))])).mean(0)
        expected = (mean_D / mean_D.norm()).tolist()
        assert one.embedding == pytest.approx(expected, abs=1e-6)
        numbers = client.embeddings.create(model="tiny", input=text, encoding_format="float").data[0].embedding
        assert numbers == pytest.approx(expected, abs=1e-6)


def test_answers_follow_what_is_asked(client: openai.OpenAI) -> None:
    """A schema, an expression, and a beam search, on the engine."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=70, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip
    assert found.choices[0].finish_reason == "stop" and json.loads(found.choices[0].message.content or "")["a"] in (1, 2)
    written = client.completions.create(model="tiny", prompt="a", max_tokens=20, extra_body={"regex": "[a-c]{3}x"}).choices[0]
    assert re.fullmatch("[a-c]{3}x", written.text) and written.finish_reason == "stop"
    beams = client.completions.create(model="tiny", prompt="a", max_tokens=4, n=3, logprobs=0, extra_body={"num_beams": 3})
    sums = [sum(choice.logprobs.token_logprobs or ()) for choice in beams.choices if choice.logprobs]  # type: ignore[arg-type]
    greedy = client.completions.create(model="tiny", prompt="a", max_tokens=4, temperature=0, logprobs=0).choices[0].logprobs
    assert len(sums) == 3 and sums == sorted(sums, reverse=True) and greedy and sums[0] >= sum(greedy.token_logprobs or ()) - 1e-6  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.sample
def test_adapters_on_one_base(model: Decoder, tokenizer: Tokenizer) -> None:
    """Requests for the base and for an adapter, at the same time: each gets what its own weights draw."""
    import copy

    import torch

    from trueline.models.adapters import attach, set_adapter
    from trueline.models.lora import LoRAConfig

    both = copy.deepcopy(model)
    attach(both, LoRAConfig(r=4), "law", seed=1)
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    set_adapter(both)
    asked = {"prompt": [PROMPT] * 3, "max_tokens": 8, "temperature": 0}
    expected = {}
    for name, active in (("tiny", ()), ("law", ("law",))):
        set_adapter(both, *active)
        expected[name] = Engine(both, tokenizer).generate(PROMPT, max_new_tokens=8, temperature=0)
    assert expected["tiny"] != expected["law"]
    with live(Engine(both, tokenizer, adapters=("law",)), tokenizer) as server, ThreadPoolExecutor(4) as pool:
        names = ["tiny", "law"] * 3
        answers = list(pool.map(lambda name: server.post("completions", {**asked, "model": name}).json(), names))
        for name, answer in zip(names, answers, strict=True):
            assert answer["model"] == name and [choice["text"] for choice in answer["choices"]] == expected[name] * 3
        vectors = [server.post("embeddings", {"input": PROMPT, "model": name}).json()["data"][0]["embedding"] for name in names]
        assert vectors[0] == vectors[2] != vectors[1] == vectors[3]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "law"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5': this server has tiny, law"):
        client.completions.create(model="gpt-5", prompt="a")


@pytest.mark.parametrize(
    ("route", "asked", "said"),
    [
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix is not supported here: leave it out"),
        ("completions", {"prompt": "a", "colour": 1}, "colour is not supported here"),
        ("completions", {"prompt": "a", "chat_template": "{{ 1 }}"}, "chat_template is not taken from requests"),
        ("completions", {"prompt": ["a", 3]}, "prompt must be a text, a list of texts"),
        ("completions", {"prompt": []}, "prompt must be a text, a list of texts"),
        ("completions", {"prompt": [400]}, "token id 400, but the model's vocabulary ends at 319"),
        ("completions", {"prompt": [1] * 96}, "96 tokens, but the model's context holds 96"),
        ("completions", {}, "prompt is missing"),
        ("completions", {"prompt": "a", "n": "2"}, "n: input should be a valid integer"),
        ("completions", {"prompt": "a", "n": 2, "temperature": 0}, "n=2 greedy responses would all be equal"),
        ("completions", {"prompt": "a", "n": 300}, "more than 256 in one request"),
        ("completions", {"prompt": "a", "best_of": 2, "stream": True}, "leave out stream or best_of"),
        ("completions", {"prompt": "a", "n": 3, "best_of": 2}, "best_of is 2: it must be at least n, 3"),
        ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options needs stream"),
        ("completions", {"prompt": "a", "regex": "a+", "grammar": "start: /a/"}, "one of response_format, regex and grammar"),
        ("completions", {"prompt": "a", "num_beams": 2, "logprobs": 1}, "a beam search goes without logprobs above 0"),
        ("completions", {"prompt": "a", "num_beams": 2, "n": 3}, "must not exceed num_beams, 2"),
        ("completions", {"prompt": "a", "regex": "("}, "regular expression"),
        ("completions", {"prompt": "\udfff"}, "half of a surrogate pair"),
        ("chat/completions", {"messages": [{"role": "user", "content": "\udfff"}]}, "half of a surrogate pair"),
        ("completions", {"prompt": "a", "\udfff": 1}, "the body: "),
        ("chat/completions", {"messages": []}, "messages: "),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools is not supported here"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: "),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs needs logprobs"),
        ("embeddings", {"input": "a", "dimensions": 3}, "dimensions is not supported here"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(server: Live, route: str, asked: dict[str, object], said: str) -> None:
    """One sentence in OpenAI's form, 400, the field as param."""
    body = json.dumps(asked)
    answer = server.http.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


def test_bodies_that_are_no_request(server: Live) -> None:
    url, http = "/v1/completions", server.http
    json_type = {"content-type": "application/json"}
    assert "is not JSON" in http.post(url, content=b'{"prompt": ', headers=json_type).json()["error"]["message"]
    assert http.post(url, content=b"[" * 100_000, headers=json_type).status_code == 400
    assert http.post(url, content=b"\xff\xfe", headers=json_type).status_code == 400
    assert http.post(url, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}).status_code == 400
    assert http.post(url, content=b'{"prompt": "a", "temperature": NaN}', headers=json_type).status_code == 400
    assert http.get(url).status_code == 405 and server.http.get("/v1/nothing").status_code == 404


def test_the_description_names_every_route(server: Live) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    assert sorted(paths) == ["/health", "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"]
