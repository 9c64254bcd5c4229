"""Text to ids and back: a tokenizer read from a Hugging Face directory, or trained here.

    tok = load_tokenizer("path/or/hub-id")            tok = train_tokenizer(texts, vocab_size=4096)
    tok.encode(text) -> [ids]                         plain text: "<|im_end|>" inside it is spelled out, never the special id
    tok.encode(text, allow_special=True)              a rendered chat: special tokens are recognised
    tok.save(folder)                                  transformers.AutoTokenizer reads it, with equal ids

Two backends are kept. `_full` recognises every added token. `_plain` does not know the control tokens (special tokens, and added
tokens that look like `<|this|>`); it knows an alias of equal length for each, so that a text in which structure and content both
say "<|im_end|>" can be encoded in one pass with true offsets (see `encode_structured`).
Neither runs the post-processor: nothing is added to the text, and offsets are not trimmed. `adds_bos` says what it would do.

Left out: chat templates (`template.py`), SentencePiece `.model` files, slow tokenizers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from trueline.store import write_atomic

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The default chat template (Yi's and OpenAI's format)."""

ALIAS_FIRST, ALIAS_FILL = 0x100000, chr(0x10FFFD)
"""Aliases of control tokens start with a character of the last private plane and are filled to the token's length."""


class Tokenizer:
    """Immutable by convention: every field is set at construction."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        names: Mapping[str, str | None],
        chat_template: str = CHATML,
        config: Mapping[str, Any] | None = None,
        extra_stop_ids: Iterable[int] = (),
        source: str = "",
    ) -> None:
        """`spec` is the parsed tokenizer.json; `names` maps bos_token, eos_token, pad_token, unk_token to their text."""
        self.spec: Mapping[str, Any] = spec
        self.names: dict[str, str] = {role: text for role, text in names.items() if text}
        self.chat_template = chat_template
        self.config: Mapping[str, Any] = dict(config or {})
        self.source = source
        self._full = _backend(spec)
        self.added: dict[str, int] = {t["content"]: t["id"] for t in spec.get("added_tokens", ())}
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.pad_id = self._id_of("pad_token")
        self.unk_id = self._id_of("unk_token")
        self.control: dict[str, int] = _control_tokens(spec, self.names.values(), self.added)
        self.aliases: dict[str, str] = {
            text: chr(ALIAS_FIRST + i) + ALIAS_FILL * (len(text) - 1) for i, text in enumerate(sorted(self.control))
        }
        self._plain = _backend(_with_aliases(spec, self.aliases))
        self.adds_bos = _adds(spec, self.config, self.names.get("bos_token"), first=True)
        self.adds_eos = _adds(spec, self.config, self.names.get("eos_token"), first=False)
        known_ends = (self.control[text] for text in _END_OF_TURN if text in self.control)
        ends = {i for i in (self.eos_id, *extra_stop_ids, *known_ends) if i is not None}
        self.stop_ids: tuple[int, ...] = tuple(sorted(ends))
        self.vocab_size: int = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        """Rows that an embedding needs: the largest id + 1."""
        canonical = json.dumps([spec, self.names, chat_template], sort_keys=True, ensure_ascii=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    def _id_of(self, role: str) -> int | None:
        text = self.names.get(role)
        return None if text is None else self._full.token_to_id(text)

    # ---- text to ids

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of the text as it stands; nothing is added. Control tokens are recognised only with `allow_special`."""
        backend = self._full if allow_special else self._plain
        return backend.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [L] and offsets int32 [L, 2]: token i spells text[start:end] (not trimmed of white space)."""
        backend = self._full if allow_special else self._plain
        return _arrays(backend.encode(text, add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[np.ndarray]:
        """Plain texts to int32 arrays, over threads."""
        backend = self._full if allow_special else self._plain
        return [np.array(e.ids, dtype=np.int32) for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    # ---- ids to text

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids. `skip_special` leaves out special and control tokens."""
        hidden = self._hidden_ids if skip_special else frozenset()
        return self._full.decode([int(i) for i in ids if int(i) not in hidden], skip_special_tokens=False)

    @property
    def _hidden_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def token(self, index: int) -> str:
        """The vocabulary's name of an id, for messages to people."""
        return self._full.id_to_token(index) or f"<id {index}>"

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            **{k: v for k, v in self.config.items() if k not in ("chat_template", "auto_map")},
            **self.names,
        }
        write_atomic(folder / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False, indent=1))
        write_atomic(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))
        write_atomic(folder / "special_tokens_map.json", json.dumps(self.names, ensure_ascii=False, indent=2))
        write_atomic(folder / "chat_template.jinja", self.chat_template)


_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>")


def _backend(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer without what changes lengths or offsets behind our back."""
    bare = {**spec, "post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(bare))


def _arrays(encoding: tokenizers.Encoding) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    return np.array(encoding.ids, dtype=np.int32), offsets


def _control_tokens(spec: Mapping[str, Any], names: Iterable[str], added: Mapping[str, int]) -> dict[str, int]:
    """Added tokens that structure a sequence and that a person's text must never produce.

    Some families mark their turn tokens special: false (Yi), so the `<|this|>` shape counts too. Tokens such as <think> or runs
    of spaces, which belong to what people and models write, stay ordinary.
    """
    named = set(names)
    return {
        t["content"]: t["id"]
        for t in spec.get("added_tokens", ())
        if t.get("special") or t["content"] in named or re.fullmatch(r"<\|[^|\s]+\|>", t["content"])
    }


def _with_aliases(spec: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The spec in which the control tokens are known by their alias only.

    A control token that is also in the model's vocabulary is renamed there, so that it keeps its id.
    """
    changed = copy.deepcopy(dict(spec))
    for token in changed.get("added_tokens", ()):
        if token["content"] in aliases:
            token.update(content=aliases[token["content"]], special=True, normalized=False)
    vocab = changed["model"].get("vocab")
    if isinstance(vocab, dict):
        changed["model"]["vocab"] = {aliases.get(text, text): i for text, i in vocab.items()}
    elif isinstance(vocab, list):  # Unigram: [piece, score]
        changed["model"]["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocab]
    unk = changed["model"].get("unk_token")
    if unk in aliases:
        changed["model"]["unk_token"] = aliases[unk]
    merges = changed["model"].get("merges")
    if merges:
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in merges)
        changed["model"]["merges"] = [list(p) for p in pairs if "".join(p) not in aliases]
    return changed


def _adds(spec: Mapping[str, Any], config: Mapping[str, Any], text: str | None, *, first: bool) -> bool:
    """Does this tokenizer put its BOS (EOS) around a plain text?"""
    if text is None:
        return False
    said = config.get("add_bos_token" if first else "add_eos_token")
    if said is not None:
        return bool(said)
    return _processor_adds(spec.get("post_processor"), text, first=first)


def _processor_adds(processor: Mapping[str, Any] | None, text: str, *, first: bool) -> bool:
    if processor is None:
        return False
    if processor["type"] == "Sequence":
        return any(_processor_adds(p, text, first=first) for p in processor["processors"])
    if processor["type"] == "TemplateProcessing":
        piece = processor["single"][0 if first else -1]
        return piece.get("SpecialToken", {}).get("id") == text
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return processor["cls" if first else "sep"][0] == text
    return False


# ---- training

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    split_digits: bool = True,
    normalizer: str | None = None,
    add_prefix_space: bool = False,
    max_token_length: int = 16,
    min_frequency: int = 2,
    specials: Sequence[str] = SPECIALS,
    chat_template: str = CHATML,
) -> Tokenizer:
    """Byte-level BPE by Yi's rules: every digit alone, every byte has a token, identity normaliser, no dummy prefix.

    Words carry their leading space, and a line break forms one token with the indentation after it, which code needs.
    `specials` get the first ids; the first is the end of text, the last pads. `normalizer` is None, "NFC" or "NFKC"
    (both lose the exact round trip). Merges never cross the borders of `_pattern`.
    """
    if vocab_size < 256 + len(specials):
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(specials)} special tokens need a token each.")
    if normalizer not in (None, "NFC", "NFKC"):
        raise ValueError(f"normalizer {normalizer!r} is unknown: use none, NFC or NFKC.")
    backend = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = {"NFC": tokenizers.normalizers.NFC, "NFKC": tokenizers.normalizers.NFKC}[normalizer]()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pattern(split_digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=max_token_length,
        show_progress=False,
    )
    backend.train_from_iterator(_batches(texts, 256), trainer)
    names = {"eos_token": specials[0], "pad_token": specials[-1]}
    return Tokenizer(json.loads(backend.to_str()), names=names, chat_template=chat_template)


def _pattern(split_digits: bool) -> str:
    """Where merges must stop. Alternatives in order: words with their space; digits; punctuation; line breaks before a
    non-space; white space up to the last one before a word (line break and indentation together); other white space."""
    digits = r"\p{N}" if split_digits else r" ?\p{N}+"
    return rf" ?[\p{{L}}\p{{M}}]+|{digits}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s*[\r\n]+(?=\S)|\s+(?!\S)|\s+"


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
