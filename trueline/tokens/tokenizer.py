"""Text to ids and back: a tokenizer read from a Hugging Face directory, or trained here.

    tok = load_tokenizer("path/or/hub-id")            tok = train_tokenizer(texts, vocab_size=4096)
    tok.encode(text) -> [ids]                         plain text: "<|im_end|>" inside it is spelled out, never the special id
    tok.encode(text, allow_special=True)              control tokens in the text are recognised
    tok.save(folder)                                  transformers.AutoTokenizer reads it, with equal ids

Two backends are kept: `_full` recognises every added token, `_plain` knows control tokens by their aliases only
(backend.py). So a rendered chat in which both the template and a person wrote "<|im_end|>" is encoded in one pass, with
true offsets (`encode_guarded`). Nothing is ever added to a text; `adds_bos` says whether the family expects a BOS
before plain text.

Left out: rendering chats (template.py), SentencePiece `.model` files, slow tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from trueline.store import adapter_base, local_folder, write_atomic
from trueline.tokens.backend import ALIAS_HEAD, adds, aliases_of, build, control_tokens, with_aliases
from trueline.tokens.template import CHATML, ChatTemplate, RowError, TemplateError


class Tokenizer:
    """Immutable by convention: every field is set at construction."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        names: Mapping[str, str | None],
        chat_template: str = "",
        config: Mapping[str, Any] | None = None,
        extra_stop_ids: Iterable[int] = (),
        source: str = "",
    ) -> None:
        """`spec` is the parsed tokenizer.json; `names` maps bos_token, eos_token, pad_token, ... to their text; `config`
        is the rest of tokenizer_config.json; without a `chat_template` it is ChatML (see `default_template`)."""
        self.spec = spec
        self.names: dict[str, str] = {role: text for role, text in names.items() if text}
        self.config: dict[str, Any] = dict(config or {})
        self.source = source
        self._full = build(spec)
        self.control: dict[str, int] = control_tokens(spec, self.names.values())
        """Text -> id of the tokens that plain text never produces."""
        self.aliases: dict[str, str] = aliases_of(self.control)
        self._plain = build(with_aliases(spec, self.aliases))
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.pad_id = self._id_of("pad_token")
        self.unk_id = self._id_of("unk_token")
        self.adds_bos = adds(spec, self.config, self.names.get("bos_token"), first=True)
        self.adds_eos = adds(spec, self.config, self.names.get("eos_token"), first=False)
        self.chat_template = chat_template or default_template(self.control, self.names)
        self.template = ChatTemplate(self.chat_template, self.names)
        self.vocab_size: int = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        """Rows that an embedding needs: the largest id + 1."""
        self._extra_stop_ids = tuple(extra_stop_ids)
        self._swap = {**self.aliases, **{alias: text for text, alias in self.aliases.items()}}
        self.control_pattern = _any_of(self.control)
        self._swap_pattern = _any_of(self._swap)

    def _id_of(self, role: str) -> int | None:
        text = self.names.get(role)
        return None if text is None else self._full.token_to_id(text)

    @cached_property
    def fingerprint(self) -> str:
        """Names the vocabulary and the template; equal for a saved and reloaded tokenizer."""
        text = json.dumps([self.spec, self.names, self.chat_template, self.adds_bos], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> str:
        """Names what the ids mean: of two tokenizers with the same one, either decodes what the other encoded."""
        text = json.dumps(sorted(self._full.get_vocab(with_added_tokens=True).items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def spelling(self) -> str:
        """Names how texts and chats become ids: what one tokenizer wrote, another with the same one may read as it stands."""
        kept = [self.spec.get(name) for name in ("model", "normalizer", "pre_tokenizer")]
        text = json.dumps([kept, self.vocabulary, self.chat_template, self.eos_id, self.adds_bos and self.bos_id], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def turn_end(self) -> str | None:
        """The control token with which the chat template closes an assistant turn, or None."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "trueline"}]
        try:
            text = self.template.render(probe)
        except TemplateError:  # `lint_template` reports it; pretraining needs no template
            return None
        closing = self.control_pattern.search(text, text.rfind("trueline"))
        return closing.group() if closing else None

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response: EOS, the end of a turn in the chat template, those named by generation_config.json."""
        ends = {self.eos_id, *self._extra_stop_ids}
        if self.turn_end is not None:
            ends.add(self.control[self.turn_end])
        return tuple(sorted(i for i in ends if i is not None))

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The same as they look in a rendered chat."""
        return tuple(sorted(text for text, i in self.control.items() if i in self.stop_ids))

    def with_template(self, chat_template: str) -> Tokenizer:
        """The same vocabulary with another chat template."""
        return Tokenizer(
            self.spec,
            names=self.names,
            chat_template=chat_template,
            config=self.config,
            extra_stop_ids=self._extra_stop_ids,
            source=self.source,
        )

    # ---- text to ids

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of the text as it stands; nothing is added. Control tokens are recognised only with `allow_special`."""
        return self.encode_with_offsets(text, allow_special=allow_special)[0].tolist()

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [L] and offsets int32 [L, 2]: token i spells text[start:end], white space included."""
        if allow_special:
            return _encoded(self._full, text)
        if ALIAS_HEAD not in text:
            return _encoded(self._plain, text)
        shift = 0
        ids, offsets = [], []
        for part in re.split(f"(?<={ALIAS_HEAD})", text):  # no part can hold an alias
            part_ids, part_offsets = _encoded(self._plain, part)
            ids.append(part_ids)
            offsets.append(part_offsets + shift)
            shift += len(part)
        return np.concatenate(ids), np.concatenate(offsets)

    def encode_guarded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and offsets of a chat rendered from guarded messages: control tokens that the template wrote become their
        ids, those that a person wrote (aliases here) are spelled out."""
        if ALIAS_HEAD not in text:
            return _encoded(self._full, text)
        return _encoded(self._plain, self._swap_pattern.sub(lambda match: self._swap[match.group()], text))

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[np.ndarray]:
        """Many texts to int32 arrays, over threads."""
        if not allow_special and any(ALIAS_HEAD in text for text in texts):
            return [self.encode_with_offsets(text)[0] for text in texts]
        backend = self._full if allow_special else self._plain
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # one of them is no Unicode; only the slow path says so
            return [self.encode_with_offsets(text, allow_special=allow_special)[0] for text in texts]
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    # ---- ids to text

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids. `skip_special` leaves out the control tokens."""
        hidden = self._hidden if skip_special else frozenset()
        return self._full.decode([int(i) for i in ids if int(i) not in hidden], skip_special_tokens=False)

    @cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def token(self, index: int) -> str:
        """The vocabulary's name of an id, for messages to people."""
        return self.piece(index) or f"<id {index}>"

    def piece(self, index: int) -> str | None:
        """The vocabulary's own spelling of an id, None where it has none."""
        return self._full.id_to_token(index)

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            **self.config,
            **self.names,
        }
        if config["tokenizer_class"] == "TokenizersBackend":  # the name of transformers 5, which 4 and its users lack
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_atomic(folder / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False, indent=1))
        write_atomic(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))
        write_atomic(folder / "special_tokens_map.json", json.dumps(self.names, ensure_ascii=False, indent=2))
        write_atomic(folder / "chat_template.jinja", self.chat_template)


def default_template(control: Mapping[str, int], names: Mapping[str, str]) -> str:
    """ChatML where its end token exists; else every turn is closed by the EOS, a token that the model knows."""
    if "<|im_end|>" in control or "eos_token" not in names:
        return CHATML
    return CHATML.replace("'<|im_end|>'", "eos_token")


def _encoded(backend: tokenizers.Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        encoding = backend.encode(text, add_special_tokens=False)
    except TypeError as error:
        raise RowError("the text holds half of a surrogate pair, which is no Unicode") from error
    return np.array(encoding.ids, dtype=np.int32), np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


# ---- reading


def load_tokenizer(path_or_hub_id: str | Path) -> Tokenizer:
    """From a directory in the Hugging Face layout, or, when no such directory exists, from the hub."""
    folder = local_folder(path_or_hub_id, "tokenizer")
    if not (folder / "tokenizer.json").is_file():
        if adapter_base(folder):  # PEFT writes none beside an adapter
            return load_tokenizer(adapter_base(folder))
        if (folder / "tokenizer.model").is_file():
            raise ValueError(
                f"{folder} has only a SentencePiece tokenizer.model; write the tokenizer.json read here once with "
                "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        raise ValueError(f"{folder} has no tokenizer.json: give a directory (or hub id) that holds one.")
    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    spec, config, listed = (_json(folder / name) for name in files)
    try:
        names = {role: _text(said) for role, said in {**listed, **config}.items() if role.endswith("_token")}
        names = {role: text for role, text in names.items() if text}
        kept = {k: v for k, v in config.items() if k not in ("chat_template", "auto_map", *names)}
        return Tokenizer(
            _with_listed_tokens(spec, config),
            names=names,
            chat_template=_template(folder, config),
            config=kept,
            extra_stop_ids=_ends(folder),
            source=str(path_or_hub_id),
        )
    except Exception as error:  # the library raises bare Exceptions, and any key may be missing or hold anything
        if isinstance(error, ValueError) and str(error).startswith(str(folder)):
            raise
        said = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{folder}: its tokenizer files cannot be used ({type(error).__name__}: {said}): fetch or write them again."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path} is not valid JSON{where}: fetch or write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold an object, {{...}}: fetch or write it again.")
    return found


def _text(said: Any) -> str | None:
    """Special tokens are given as text or as a mapping with their content."""
    return said.get("content") if isinstance(said, dict) else said if isinstance(said, str) else None


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    said = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template") or ""
    if isinstance(said, str):
        return said
    by_name = {entry["name"]: entry["template"] for entry in said}
    if "default" not in by_name:
        listed = ", ".join(sorted(by_name))
        raise ValueError(f"{folder} names the chat templates {listed}, but none is called default: rename one.")
    return by_name["default"]


def _with_listed_tokens(spec: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Added tokens that only tokenizer_config.json lists."""
    known = {t["content"] for t in spec.get("added_tokens", ())}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    more = [
        {"id": int(index), "content": said["content"], **{flag: bool(said.get(flag)) for flag in flags}}
        for index, said in config.get("added_tokens_decoder", {}).items()
        if said["content"] not in known
    ]
    tokens = sorted([*spec.get("added_tokens", ()), *more], key=lambda t: t["id"])
    return {**spec, "added_tokens": tokens}


def _ends(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    said = _json(path).get("eos_token_id")
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise ValueError(f"{path}: eos_token_id is {str(said)[:40]}: it should be the number of a token, or a list of them.")
    return ids


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
    chat_template: str = "",
) -> Tokenizer:
    """Byte-level BPE by Yi's rules: every digit alone, every byte has a token, identity normaliser, no dummy prefix.

    Words carry their leading space, and a line break forms one token with the indentation after it, which code needs.
    `specials` get the first ids; the first is the end of text, the last pads. `normalizer` is None, "NFC" or "NFKC"
    (both lose the exact round trip). Merges never cross the borders of `_pattern`.
    """
    if vocab_size < 256 + len(specials):
        least = 256 + len(specials)
        raise ValueError(
            f"vocab_size {vocab_size} is too small: use at least {least} (256 bytes and the special tokens)."
        )
    if normalizer not in (None, "NFC", "NFKC"):
        raise ValueError(f"normalizer {normalizer!r} is unknown: use none, NFC or NFKC.")
    backend = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}[normalizer]()
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
