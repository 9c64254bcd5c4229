"""What a tokenizer.json says, and the library objects made from it. `spec` is the parsed file throughout.

Control tokens structure a sequence (end of turn, role markers, BOS ...); text written by people must never produce them. In the plain
backend each is known only by an alias: the same number of characters, the first of which is ALIAS_HEAD.

Left out: the vocabulary's training (tokenizer.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

ALIAS_HEAD, ALIAS_FILL = chr(0x10FFFD), chr(0x10FFFC)
ALIAS_INDEX = 0x100000
"""An alias is ALIAS_HEAD, one character that numbers the token from here on, and ALIAS_FILL to the token's length."""


def build(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer without what adds tokens, changes lengths or trims offsets behind our back."""
    bare = {**spec, "post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(bare))


def control_tokens(spec: Mapping[str, Any], named: Iterable[str]) -> dict[str, int]:
    """Text -> id of the added tokens that count as control tokens: special ones, those with a role (`named`), and all of the shape
    `<|this|>`, because some families (Yi) mark their turn tokens special: false. Tokens such as <think> or runs of spaces belong
    to what people and models write and stay ordinary. One-character tokens have no room for an alias and stay ordinary, too."""
    named = set(named)
    return {
        t["content"]: t["id"]
        for t in spec.get("added_tokens", ())
        if len(t["content"]) > 1
        and (t.get("special") or t["content"] in named or re.fullmatch(r"<\|[^|\s]+\|>", t["content"]))
    }


def aliases_of(control: Iterable[str]) -> dict[str, str]:
    """Control token -> its alias."""
    return {
        text: ALIAS_HEAD + chr(ALIAS_INDEX + i) + ALIAS_FILL * (len(text) - 2) for i, text in enumerate(sorted(control))
    }


def with_aliases(spec: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The spec in which control tokens go by their alias. One that is also in the model's vocabulary is renamed there to keep its
    id, and the merges that would spell it are taken out."""
    added = [
        {**t, "content": aliases[t["content"]], "special": True, "normalized": False} if t["content"] in aliases else t
        for t in spec.get("added_tokens", ())
    ]
    model = dict(spec["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram: [piece, score]
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocab]
    elif vocab is not None and any(text in vocab for text in aliases):
        model["vocab"] = {aliases.get(text, text): i for text, i in vocab.items()}
        if model.get("merges"):
            pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
            model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & aliases.keys()]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    return {**spec, "added_tokens": added, "model": model}


def adds(spec: Mapping[str, Any], config: Mapping[str, Any], text: str | None, *, first: bool) -> bool:
    """Does this tokenizer put `text`, its BOS (or EOS), around a plain text?"""
    if text is None:
        return False
    said = config.get("add_bos_token" if first else "add_eos_token")
    return bool(said) if said is not None else _processor_adds(spec.get("post_processor"), text, first=first)


def _processor_adds(processor: Mapping[str, Any] | None, text: str, *, first: bool) -> bool:
    if processor is None:
        return False
    kind = processor["type"]
    if kind == "Sequence":
        return any(_processor_adds(p, text, first=first) for p in processor["processors"])
    if kind == "TemplateProcessing":
        piece = processor["single"][0 if first else -1]
        return piece.get("SpecialToken", {}).get("id") == text
    if kind in ("BertProcessing", "RobertaProcessing"):
        return processor["cls" if first else "sep"][0] == text
    return False
