"""A tokenizer as the metadata of a GGUF file, where llama.cpp spells every text as the tokenizer does.

    gguf_tokenizer(tokenizer, rows=model.config.vocab_size) -> {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", ...}

llama.cpp has two tokenizers that fit here. Byte-level BPE cuts a text by one of the patterns that are written into its sources,
known by names: the name is found by what the tokenizer does, on texts that tell the patterns apart, never by what it is
called. SentencePiece's BPE ("llama") has scores in place of merges. Anything else is refused, with the pattern named.

Left out: Unigram, WordPiece, tokens that swallow white space beside them; llama.cpp's pre-tokenizers whose patterns only
resemble those of their models (tekken, gpt-4o).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import tokenizers
from tokenizers import Regex, pre_tokenizers

from trueline.tokens.backend import build
from trueline.tokens.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's kinds of tokens."""
ALONE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
LATER = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("gpt-2", False, (ALONE,)),
    ("starcoder", False, (r"\p{N}", ALONE)),
    ("llama-bpe", True, (ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + LINES,)),
    ("smaug-bpe", False, (ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + LINES,)),
    ("qwen2", False, (ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + LINES,)),
    (
        "qwen35",
        False,
        (ENDINGS + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    ("deepseek-v3", False, (r"\p{N}{1,3}", CJK, LATER)),
    ("falcon", False, (r"[\p{P}\$\+<=>\^~\|`]+", ALONE, r"[0-9][0-9][0-9]")),
    (
        "seed-coder",
        False,
        (ENDINGS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    ("bloom", False, (r" ?[^(\s|[.,!?…。，、।۔،])]+",)),
)
"""Name, whether a word that is in the vocabulary is taken whole (ignore_merges), and the patterns, applied one after the other."""
HARD = (
    "Hello world", "don't I'LL we'Ve 'sister 'S", "a  b   c", " lead", "trail  ", "1234567 12 3.14 ١٢٣ ½ Ⅷ", "x=1;y+=2",
    "\t\tif a:\n\t\t\tb\n", "a\n\nb\r\n\r\nc", "line \n next\n  in", "naïve Zürich ÀÉ", "e\u0301 n\u0303o हिन्दी ภาษาไทย",
    "漢字かなカナ한글 中文。标点！", "😀👩\u200d👩\u200d👧🇩🇪 ok", "foo_bar.baz(qux)->x[0]", "$5 €3 ©®™ ^~`|", "...!!??--",
    "a\u00a0b\u3000c\u2003d", "\u200bzero\ufeffwidth", "\n", " ", "   ", "\r\n", "#!@ \n", "Σίσυφος ДОМ дом",
)  # fmt: skip
PARTS = (
    "a", "Be", "xyz", "é", "Ж", "漢", "かな", "한", "हि", "\u0301", "1", "22", "4567", "٣", "½", " ", "  ", "   ", "\t", "\n",
    "\r\n", "\u00a0", "\u3000", "'", "'s", "'LL", "’t", "!", "?!", "_", "-", "$", "=", "+", "|", "~", "`", "(", "。", "，", "😀",
    "\u200d", "\u200b", "/", "#", "<",
)  # fmt: skip


def hard_texts(count: int = 1500) -> list[str]:
    """Texts on which pre-tokenizers differ: HARD, and random mixtures of PARTS, the same ones every time."""
    rng = random.Random(0)
    return [*HARD, *("".join(rng.choices(PARTS, k=rng.randint(2, 9))) for _ in range(count))]


def gguf_tokenizer(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Metadata of a GGUF file for a model whose embedding has so many rows. Raises ValueError where llama.cpp would spell
    any text otherwise."""
    spec, where = tokenizer.spec, tokenizer.source or "the tokenizer"
    model = spec["model"]
    if model["type"] != "BPE":
        raise _refused(where, f"is {model['type']}, and only byte-level BPE and SentencePiece's BPE can be written")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(where, f"has {key} = {model[key]!r}, which llama.cpp does not know")
    for token in spec.get("added_tokens", ()):
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise _refused(where, f"has the token {token['content']!r}, which swallows white space or wants word borders beside it")
    if tokenizer.vocab_size > rows:
        raise _refused(where, f"has ids up to {tokenizer.vocab_size - 1}, and the model's vocabulary ends at {rows - 1}")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]
    texts, kinds = _tokens(tokenizer, rows)
    found: dict[str, Any]
    if model.get("byte_fallback"):
        prefix = _space_prefix(spec, where)
        scores = _scores(merges, model["vocab"], tokenizer.control, rows, where)
        kinds = [BYTE if text in BYTES and kind == NORMAL else kind for text, kind in zip(texts, kinds, strict=True)]
        kinds = [UNKNOWN if text == model.get("unk_token") else kind for text, kind in zip(texts, kinds, strict=True)]
        found = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores}
        found["tokenizer.ggml.add_space_prefix"] = prefix
    else:
        found = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre_tokenizer(spec, where)}
        found["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
        found["tokenizer.ggml.add_space_prefix"] = False
    found |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id}
    if tokenizer.turn_end is not None and tokenizer.control[tokenizer.turn_end] != tokenizer.eos_id:
        ids["eot"] = tokenizer.control[tokenizer.turn_end]
    if tokenizer.eos_id is None:  # llama.cpp would end texts at a number of its own
        ids["eos"] = ids.get("eot", tokenizer.stop_ids[0] if tokenizer.stop_ids else None)
    found |= {f"tokenizer.ggml.{role}_token_id": number for role, number in ids.items() if number is not None}
    found["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    found["tokenizer.ggml.add_eos_token"] = tokenizer.adds_eos
    return {**found, "tokenizer.chat_template": tokenizer.chat_template}


def notes(tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp leaves out that no pattern shows."""
    kind = (tokenizer.spec.get("normalizer") or {}).get("type")
    return [f"llama.cpp does not normalise: texts that are not in {kind} get other ids there"] if kind in ("NFC",) else []


def _refused(where: str, what: str) -> ValueError:
    return ValueError(f"{where}: the tokenizer {what}: --ids_only writes the model without it, for programs that pass token ids.")


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Text and kind of every row of the embedding."""
    texts = {number: text for text, number in tokenizer.spec["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, NORMAL)
    for token in tokenizer.spec.get("added_tokens", ()):
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["content"] in tokenizer.control else USER_DEFINED
    every = range(rows)
    return [texts.get(i, f"[PAD{i}]") for i in every], [kinds.get(i, UNUSED) for i in every]


# ---- byte-level BPE


def pre_tokenizer(spec: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name of what cuts the text before the merges, by comparing pieces on hard texts."""
    normalizer = spec.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(where, f"normalises texts ({normalizer['type']}), which llama.cpp does not")
    given, said = build(spec).pre_tokenizer, json.dumps(spec.get("pre_tokenizer"), ensure_ascii=False)
    texts = hard_texts()
    pieces = [] if given is None else [_pieces(given, text) for text in texts]
    whole = bool(spec["model"].get("ignore_merges"))
    fits = []
    for name, ignores, patterns in KNOWN:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        theirs = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        if pieces and all(_pieces(theirs, text) == ours for text, ours in zip(texts, pieces, strict=True)):
            if ignores == whole:
                return name
            fits.append(name)
    if fits:
        raise _refused(where, f"cuts texts as llama.cpp's {fits[0]}, but with ignore_merges = {str(whole).lower()}")
    names = ", ".join(name for name, _, _ in KNOWN)
    raise _refused(where, f"cuts texts by {_patterns(spec.get('pre_tokenizer')) or said}, and llama.cpp knows {names}")


def _pieces(cutter: tokenizers.pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in cutter.pre_tokenize_str(text)]


def _patterns(said: Mapping[str, Any] | None) -> str:
    """The patterns of a pre-tokenizer, for messages."""
    if said is None:
        return ""
    if said["type"] == "Sequence":
        return " then ".join(filter(None, map(_patterns, said["pretokenizers"])))
    if said["type"] == "Split":
        return f"'{next(iter(said['pattern'].values()))}'"
    if said["type"] == "ByteLevel":
        with_space = "ByteLevel with add_prefix_space" if said.get("add_prefix_space") else ""
        return with_space or ("ByteLevel" if said.get("use_regex", True) else "")
    return said["type"]


# ---- SentencePiece's BPE

BYTES = {f"<0x{i:02X}>" for i in range(256)}
SPACE = "▁"


def _steps(said: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    """A pipeline's steps, flat."""
    if said is None:
        return
    if said["type"] == "Sequence":
        for step in said[inside]:
            yield from _steps(step, inside)
    else:
        yield said


def _space_prefix(spec: Mapping[str, Any], where: str) -> bool:
    """Whether a space is put before the text; refuses what does more than that and writing spaces as "▁"."""
    prefix = spaces = False
    crosses = any(SPACE in text[1:] and text.strip(SPACE) for text in spec["model"]["vocab"])
    for step in (*_steps(spec.get("normalizer"), "normalizers"), *_steps(spec.get("pre_tokenizer"), "pretokenizers")):
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == SPACE and not spaces:
            prefix = True
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            spaces = True
        elif kind == "Split" and step["pattern"] == {"String": " "} and spaces:
            continue  # no space is left
        elif kind == "Metaspace" and step.get("prepend_scheme") == "never" and step["replacement"] == SPACE:
            if step.get("split", True) and (crosses or any(text.startswith(SPACE * 2) for text in spec["model"]["vocab"])):
                raise _refused(where, "cuts texts at every space, and its vocabulary has tokens across spaces")
            spaces = True
        else:
            raise _refused(where, f"has the step {json.dumps(step, ensure_ascii=False)}, which llama.cpp's SentencePiece does not")
    if not spaces:
        raise _refused(where, "falls back to bytes, but does not write spaces as ▁")
    return prefix


def _scores(
    merges: list[tuple[str, ...]], vocab: Mapping[str, int], control: Mapping[str, int], rows: int, where: str
) -> list[float]:
    """SentencePiece joins any two neighbours whose text is a token, the best score first: minus the place of the token's first
    merge. Merges that leave such a pair out, or take turns between tokens, cannot be said so."""
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        if left + right != last and left + right in rank:
            raise _refused(where, f"has merges that no scores give (those of {left + right!r} do not follow one another)")
        last = left + right
        rank.setdefault(last, len(rank))
    listed = set(merges)
    for text in vocab.keys() - control.keys() - BYTES:
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair not in listed and all(len(part) == 1 or part in rank for part in pair):
                raise _refused(where, f"has merges that no scores give ({pair[0]!r} and {pair[1]!r} are never joined)")
    scores = [0.0] * rows
    for text, number in vocab.items():
        scores[number] = -float(rank.get(text, 0))
    return scores


# ---- proof


def difference(path: str | Path, tokenizer: Tokenizer) -> str | None:
    """The first hard text that llama.cpp spells otherwise from this file, "" where there is none; None without llama-cpp-python."""
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    theirs = Llama(str(path), vocab_only=True, verbose=False)
    composed = (tokenizer.spec.get("normalizer") or {}).get("type") == "NFC"
    for text in hard_texts():
        text = normalize("NFC", text) if composed else text
        ours, found = tokenizer.encode(text), theirs.tokenize(text.encode(), add_bos=False, special=False)
        if ours != found:
            return f"llama.cpp spells {text!r} as {found} and the tokenizer as {ours}"
    return ""
