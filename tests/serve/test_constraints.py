"""Whatever the model, what it writes under a constraint follows it; and no constraint can hold the engine up."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
import torch

from trueline.models.decoder import Decoder
from trueline.records import Sampling
from trueline.serve import constraints as room
from trueline.serve.constraints import Constraints, Matcher, token_bytes
from trueline.serve.engine import Engine
from trueline.serve.request import Constraint, Options
from trueline.serve.sampling import Change, Knobs, draw
from trueline.tokens.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "kind": {"enum": ["cat", "dög", 3, None, True]},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "height": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-zé]{1,4}$"}, "minItems": 1, "maxItems": 3},
        "home": {
            "type": "object",
            "properties": {
                "city": {"const": "Zürich — 東京"},
                "at": {"type": "array", "prefixItems": [{"type": "number"}], "items": False},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pet"}]},
    },
    "required": ["name", "kind", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {"pet": {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"], "additionalProperties": False}},
}  # fmt: skip


CROSSED = {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(4)]} for i in range(8)]}
"""A short text for 4^8 objects."""


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer) -> Iterator[Constraints]:
    made = Constraints(tokenizer)
    yield made
    made.close()


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    """SentencePiece as in Llama: byte fallback, a space spelled "▁", and the first one of a text dropped."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [
        *specials,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *'▁abcdefghij"{}[]:,0123456789.-é',
        "▁a",
        "▁{",
        '▁"',
        "ab",
        "▁▁",
        "東",
    ]
    decoder = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
               {"type": "Strip", "content": " ", "start": 1, "stop": 0}]  # fmt: skip
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "pre_tokenizer": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": i < 3}
            for i, text in [*enumerate(specials), (len(pieces), "<think>")]
        ],
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": []},
    }  # fmt: skip
    return Tokenizer(spec, names={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def allowed(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(mask, bitorder="little"))


def random_ids(constraints: Constraints, matchers: list[Matcher], seed: int, limit: int = 3000) -> list[list[int]]:
    """What a model draws that likes every token equally: those of a batch, each until its end token."""
    rng = np.random.default_rng(seed)
    found: list[list[int]] = [[] for _ in matchers]
    running = list(range(len(matchers)))
    for _ in range(limit):
        masks = constraints.masks([(matchers[i], ()) for i in running])
        for i, (mask,) in zip(running, masks, strict=True):
            if not matchers[i].finished:
                found[i].append(int(rng.choice(allowed(mask))))
                matchers[i].accept(found[i][-1])
        running = [i for i in running if not matchers[i].finished and found[i][-1] not in matchers[i].stop_ids]
        if not running:
            return found
    raise AssertionError("some did not end")


def test_json_of_a_random_model_is_valid(constraints: Constraints, tokenizer: Tokenizer) -> None:
    matchers = [
        constraints.matcher(Constraint("json_schema", json.dumps(PERSON)), tokenizer.stop_ids) for _ in range(24)
    ]
    texts = [tokenizer.decode(ids) for ids in random_ids(constraints, matchers, seed=0)]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON, cls=jsonschema.Draft202012Validator)
    assert len(set(texts)) == 24 and any(not text.isascii() for text in texts)
    assert any(json.loads(text).get("next") for text in texts) and not any(matcher.error for matcher in matchers)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{1,3}(\.\d+)?",
        "a|ab+|é[^a-z]{3}東?",
        "^(yes|no)$",
        r"(?i)na(me)? \"x\"/\n[^x]",
        "( a|  b){2}",
        "a*",
        r"[\w/]\W\s\S",
    ],
)
def test_texts_of_a_random_model_match(constraints: Constraints, tokenizer: Tokenizer, pattern: str) -> None:
    matchers = [constraints.matcher(Constraint("regex", pattern), tokenizer.stop_ids) for _ in range(8)]
    for ids in random_ids(constraints, matchers, seed=1):
        assert re.fullmatch(pattern, tokenizer.decode(ids), re.ASCII), tokenizer.decode(ids)
        assert ids[-1] in tokenizer.stop_ids and not set(ids[:-1]) & set(tokenizer.control.values())


def test_grammar_and_any_json(constraints: Constraints, tokenizer: Tokenizer) -> None:
    sums = Constraint("grammar", 'start: term (("+" | "-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/')
    matchers = [constraints.matcher(sums, tokenizer.stop_ids) for _ in range(8)]
    for ids in random_ids(constraints, matchers, seed=2):
        assert re.fullmatch(r"[0-9+()-]+", tokenizer.decode(ids))
        eval(re.sub(r"\b0+(?=\d)", "", tokenizer.decode(ids)))  # Python refuses leading zeros only
    matcher = constraints.matcher(Constraint("json"), tokenizer.stop_ids)
    (mask,) = constraints.masks([(matcher, ())])[0]
    assert {tokenizer.decode([i])[0] for i in allowed(mask)} == {"{"}


def test_the_end_is_allowed_exactly_when_the_text_is_complete(constraints: Constraints, tokenizer: Tokenizer) -> None:
    end, letter = tokenizer.stop_ids[0], tokenizer.encode("a")[0]
    for stops, ends in (((end,), [end]), ((), []), ((letter,), [letter])):  # an end token may be an ordinary one, too
        matcher = constraints.matcher(Constraint("regex", "bab?"), stops)
        for token, complete in ((tokenizer.encode("b")[0], False), (letter, True)):
            (mask,) = constraints.masks([(matcher, ())])[0]
            assert not set(ends) & set(allowed(mask)) - {letter}
            if stops == (letter,):  # then it ends the text and cannot stand in it: nothing is left here
                assert complete is False or matcher.finished
            matcher.accept(token)
    matcher = constraints.matcher(Constraint("regex", "ab?"), ())
    for token, finished in ((letter, False), (tokenizer.encode("b")[0], True)):
        matcher.accept(token)
        constraints.masks([(matcher, ())])
        assert matcher.finished is finished and not matcher.error  # without an end token the engine is told


def test_masks_of_a_draft_are_those_of_its_tokens(constraints: Constraints, tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    ahead, step = (constraints.matcher(Constraint("regex", "a{2,3}b"), tokenizer.stop_ids) for _ in range(2))
    for matcher in (ahead, step):
        matcher.accept(a)
    masks = constraints.masks([(ahead, [a, b, tokenizer.stop_ids[0]])])[0]
    assert len(masks) == 4
    for place, token in enumerate([a, b]):
        assert np.array_equal(masks[place], constraints.masks([(step, ())])[0][0])
        step.accept(token)
    assert set(allowed(masks[2])) == set(tokenizer.stop_ids) and not ahead.finished and ahead.places == 3
    refused = constraints.masks([(ahead, [b, b])])[0]  # b may not follow yet
    assert np.array_equal(refused[0], masks[0]) and len(refused) == 3
    twin = constraints.copy(ahead)
    for matcher in (ahead, twin):  # a look ahead leaves no trace
        for token in (a, b):
            matcher.accept(token)
        assert set(allowed(constraints.masks([(matcher, ())])[0][0])) == set(tokenizer.stop_ids)


@pytest.mark.parametrize("lookup", [0, 4])
def test_without_an_end_token_a_complete_text_ends_the_response(
    model: Decoder, tokenizer: Tokenizer, lookup: int
) -> None:
    """Also where a draft would lead beyond it."""
    engine = Engine(model, tokenizer, stop_ids=[], block_size=2)
    prompt = tokenizer.encode("abababababababab")
    options = Options(constraint=Constraint("regex", "(ab){4}"), lookup=lookup)
    engine.submit(prompt, Sampling(max_new_tokens=30), options)
    samples = [event.sample for _ in range(30) for event in engine.step() if event.sample is not None]
    assert [tokenizer.decode(sample.ids) for sample in samples] == ["abababab"] and samples[0].finish_reason == "stop"


def test_draw_under_a_mask(constraints: Constraints, tokenizer: Tokenizer) -> None:
    """The whole path: masks, draw, accept; one row of three is constrained, the model's vocabulary is larger than the tokenizer's."""
    matcher = constraints.matcher(Constraint("regex", "[0-9]{4}"), tokenizer.stop_ids)
    rng, ids = np.random.default_rng(3), []
    V = tokenizer.vocab_size + 40
    knobs = Knobs.of([Sampling(temperature=1.5)] * 3, V, torch.device("cpu"))
    while not ids or ids[-1] not in tokenizer.stop_ids:
        mask = constraints.masks([(matcher, ())])[0][0]
        drawn, _ = draw(torch.randn(3, V), knobs, rng.random(3), [Change(1, None, mask)])
        ids.append(int(drawn[1]))
        matcher.accept(ids[-1])
    assert re.fullmatch("[0-9]{4}", tokenizer.decode(ids))


def test_byte_fallback_and_a_dropped_space(llama: Tokenizer) -> None:
    tokens = token_bytes(llama)
    rng = np.random.default_rng(4)
    ordinary = [i for i in range(llama.vocab_size) if i not in llama.control.values()]
    for _ in range(200):
        ids = [ordinary[0], *rng.choice(ordinary, 6).tolist()]
        try:
            text = b"".join(tokens[i] for i in ids).decode()
        except UnicodeDecodeError:
            continue
        assert llama.decode(ids) == text.removeprefix(" ")
    constraints = Constraints(llama)
    try:
        cases = [
            Constraint("regex", "(a| a|b){3}東?"),
            Constraint("json_schema", json.dumps(PERSON)),
            Constraint("regex", "<think>a|<s>b"),
        ]
        for number, constraint in enumerate(cases):
            matchers = [constraints.matcher(constraint, llama.stop_ids) for _ in range(6)]
            for ids in random_ids(constraints, matchers, seed=number):
                text = llama.decode(ids)
                if constraint.kind == "regex":
                    assert re.fullmatch(constraint.text, text), text
                else:
                    jsonschema.validate(json.loads(text), PERSON, cls=jsonschema.Draft202012Validator)
        with pytest.raises(ValueError, match="allows no token"):
            constraints.matcher(Constraint("regex", " a"), llama.stop_ids)  # the decoder would drop the space
    finally:
        constraints.close()


def test_byte_level_tokens_are_their_bytes(tokenizer: Tokenizer) -> None:
    tokens = token_bytes(tokenizer)
    for text in ("Return the café's sum.\n", "東京 \x00\x7f\x80", "  naïvely\t\r\n"):
        assert b"".join(tokens[i] for i in tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("regex", "a(", "regular expression cannot be followed: unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "", "is empty"),
        ("regex", "a" * 70_000, "has 70,000 characters"),
        ("json_schema", '{"type": "objec"}', "Invalid type: objec"),
        ("json_schema", '{"type": ', r"not valid JSON \(line 1, column 10\)"),
        ("json_schema", "[" * 60_000, "not valid JSON"),
        ("json_schema", "[1]", "is a list"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 1}', "minimum"),
        ("json_schema", '{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}', "uniqueItems"),
        ("json_schema", json.dumps(CROSSED), "too large"),
        ("grammar", 'start "x"', "Expected token"),
        ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000, "nested"),
        ("grammar", "start: <|im_end|>", "allows no token"),
        ("yaml", "a: 1", "unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_in_a_sentence(
    constraints: Constraints, kind: str, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        constraints.matcher(Constraint(kind, text), (0,))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_parser_that_ends_costs_its_own_request_only(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that overflow its stack, a divisor that it counts through, and an ambiguity that never ends, beside one that goes on."""
    monkeypatch.setattr(room, "SECONDS", 0.4)
    constraints = Constraints(tokenizer)
    try:
        good = constraints.matcher(Constraint("regex", "a{5}"), tokenizer.stop_ids)
        good.accept(tokenizer.encode("a")[0])
        deep = "start: r0\n" + "\n".join(f'r{i}: "x" r{i + 1}' for i in range(3500)) + '\nr3500: "a"'
        with pytest.raises(ValueError, match="simplify it"):
            constraints.matcher(Constraint("grammar", deep), tokenizer.stop_ids)
        with pytest.raises(ValueError, match="simplify it"):
            constraints.matcher(
                Constraint("json_schema", '{"type": "integer", "multipleOf": 999983}'), tokenizer.stop_ids
            )
        endless = constraints.matcher(Constraint("grammar", 'start: s\ns: s s | s s s | "a" | '), tokenizer.stop_ids)
        for _ in range(600):
            endless.accept(tokenizer.encode("a")[0])
        masks = constraints.masks([(good, ()), (endless, ())])
        assert endless.finished and endless.error and not good.error
        assert [tokenizer.decode([i]) for i in allowed(masks[0][0])] == ["a"]
        assert allowed(masks[1][0]).size > 8 * 32  # nothing is forbidden: the engine ends it
    finally:
        constraints.close()


def test_a_worker_that_does_not_start_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MEMORY", 1 << 20)
    with pytest.raises(RuntimeError, match="did not start"):
        Constraints(tokenizer).matcher(Constraint("json"), tokenizer.stop_ids)


def test_what_is_missing_is_named(tokenizer: Tokenizer, llama: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    llama_words = Tokenizer(
        {**llama.spec, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, names=llama.names
    )
    with pytest.raises(ValueError, match="decoder WordPiece"):
        Constraints(llama_words)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trueline\[serve\]'"):
        Constraints(tokenizer)
