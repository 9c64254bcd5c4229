"""Tokenizers in GGUF files: which are written, which are refused, and that llama.cpp spells as they do (where it is installed)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from trueline.tokens import Tokenizer, train_tokenizer
from trueline.tokens.gguf import (
    BYTE,
    BYTES,
    CONTROL,
    ENDINGS,
    KNOWN,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    difference,
    gguf_tokenizer,
    hard_texts,
    notes,
)

gguf = pytest.importorskip("gguf")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(*patterns: str, ignore_merges: bool = False, **kept: Any) -> Tokenizer:
    """A byte-level BPE that cuts by these patterns, trained on the hard texts; `kept` are further parts of tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(hard_texts(300), trainer)
    return Tokenizer({**json.loads(backend.to_str()), **kept}, names={"eos_token": "<|endoftext|>", "pad_token": "<|im_end|>"})


def eager(*patterns: str, ignore_merges: bool = False, pairs: int = 8000) -> Tokenizer:
    """One that joins many pairs of bytes, seen or not, so that nearly every cut that is missing or too much shows."""
    spec = byte_level(*patterns, ignore_merges=ignore_merges).spec
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = random.Random(1).sample([(a, b) for a in alphabet for b in alphabet], pairs)
    vocab = {text: i for i, text in enumerate([*SPECIALS, *alphabet, *(a + b for a, b in joined)])}
    model = {**spec["model"], "vocab": vocab, "merges": [list(pair) for pair in joined]}
    return Tokenizer({**spec, "model": model}, names={"eos_token": "<|endoftext|>"})


def sentencepiece(prefix: bool, words: bool = False) -> Tokenizer:
    """SentencePiece's BPE as tokenizer.json writes it: every pair that makes a token is a merge, best token first."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    if words:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    texts = [text for text in hard_texts(400) if text.isascii()]
    backend.train_from_iterator(texts * 3, trainer)
    learned = json.loads(backend.to_str())["model"]
    tokens = [text for text, _ in sorted(learned["vocab"].items(), key=lambda pair: pair[1])]
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *sorted(BYTES), *tokens])}
    made = {left + right for left, right in learned["merges"]}
    merges = [
        [text[:cut], text[cut:]] for text in tokens if text in made for cut in range(1, len(text))
        if all(len(part) == 1 or part in made for part in (text[:cut], text[cut:]))
    ]  # fmt: skip
    steps = [{"type": "Prepend", "prepend": "▁"}] * prefix + [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": text, "special": True, **flags} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None, "pre_tokenizer": None,
        "added_tokens": [*added, {"id": len(vocab), "content": "<custom>", "special": False, **flags}],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(spec, names=names, config={"add_bos_token": True})


def vocabulary_file(tokenizer: Tokenizer, path: Path) -> Path:
    """A GGUF file of a tokenizer alone."""
    writer = gguf.GGUFWriter(path, "llama")
    types = gguf.GGUFValueType
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING, list: types.ARRAY}
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32, "attention.head_count": 4}
    metadata = {f"llama.{key}": value for key, value in sizes.items()} | {"llama.attention.layer_norm_rms_epsilon": 1e-5}
    for key, value in (metadata | gguf_tokenizer(tokenizer, tokenizer.vocab_size + 3)).items():
        writer.add_key_value(key, value, kinds[type(value)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("name", "ignore_merges", "patterns"), KNOWN)
def test_known_cuts(name: str, ignore_merges: bool, patterns: tuple[str, ...]) -> None:
    assert gguf_tokenizer(byte_level(*patterns, ignore_merges=ignore_merges), 1000)["tokenizer.ggml.pre"] == name


def test_the_name_is_found_by_what_is_done() -> None:
    """The same cuts in other words: ByteLevel's own pattern, Digits, letters of endings spelled out."""
    own = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert gguf_tokenizer(byte_level(r"\w+", pre_tokenizer=own), 1000)["tokenizer.ggml.pre"] == "gpt-2"
    both = {"type": "Sequence", "pretokenizers": [digits, own]}
    assert gguf_tokenizer(byte_level(r"\w+", pre_tokenizer=both), 1000)["tokenizer.ggml.pre"] == "starcoder"
    qwen = next(patterns for name, _, patterns in KNOWN if name == "qwen2")[0]
    other = qwen.replace(ENDINGS, "'(?:[sdmtSDMT]|ll|LL|lL|Ll|[vV][eE]|[rR][eE])|")
    assert gguf_tokenizer(byte_level(other), 1000)["tokenizer.ggml.pre"] == "qwen2"


def test_other_cuts_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cuts texts by ' \?\[\\p\{L\}\\p\{M\}\]\+.*llama.cpp knows gpt-2, .*--ids_only"):
        gguf_tokenizer(train_tokenizer(hard_texts(200), vocab_size=300), 300)
    gpt2, llama = KNOWN[0][2], KNOWN[2][2]
    for wrong, sentence in (
        (byte_level(*gpt2, ignore_merges=True), "cuts texts as llama.cpp's gpt-2, but with ignore_merges = true"),
        (byte_level(r"\s+"), r"cuts texts by '\\s\+', and llama.cpp knows"),
        (byte_level(llama[0].replace("{1,3}", "{1,2}"), ignore_merges=True), "cuts texts by"),
        (byte_level(*gpt2, normalizer={"type": "NFKC"}), r"normalises texts \(NFKC\)"),
        (byte_level(*gpt2, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}), "add_prefix_space"),
    ):
        with pytest.raises(ValueError, match=sentence):
            gguf_tokenizer(wrong, 1000)
    plain = byte_level(*gpt2)
    with pytest.raises(ValueError, match="ids up to 499, and the model's vocabulary ends at 399"):
        gguf_tokenizer(plain, 400)
    flags = {"id": 500, "content": "<x>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    with pytest.raises(ValueError, match="'<x>', which swallows white space"):
        gguf_tokenizer(byte_level(*gpt2, added_tokens=[*plain.spec["added_tokens"], flags]), 1000)
    unigram = {**plain.spec, "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}}
    with pytest.raises(ValueError, match="is Unigram"):
        gguf_tokenizer(Tokenizer(unigram, names={}), 1000)


def test_what_the_file_says() -> None:
    tokenizer = byte_level(*KNOWN[0][2], normalizer={"type": "NFC"})
    found = gguf_tokenizer(tokenizer, 505)
    assert found["tokenizer.ggml.tokens"][:3] == SPECIALS and found["tokenizer.ggml.tokens"][-1] == "[PAD504]"
    assert found["tokenizer.ggml.token_type"] == [CONTROL] * 3 + [NORMAL] * 497 + [UNUSED] * 5
    assert found["tokenizer.ggml.merges"][0] == " ".join(tokenizer.spec["model"]["merges"][0]) and found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.eot_token_id"] == found["tokenizer.ggml.padding_token_id"] == 2  # ChatML's end of turn
    assert found["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.bos_token_id" not in found
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    assert notes(tokenizer) and not notes(byte_level(*KNOWN[0][2]))


def test_sentencepiece() -> None:
    tokenizer = sentencepiece(prefix=True)
    found = gguf_tokenizer(tokenizer, tokenizer.vocab_size)
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.add_bos_token"] is True and found["tokenizer.ggml.bos_token_id"] == 1
    kinds, scores = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.scores"]
    assert kinds.count(BYTE) == 256 and kinds[-1] == USER_DEFINED and kinds[1:3] == [CONTROL] * 2
    merges = tokenizer.spec["model"]["merges"]
    first, last = (scores[tokenizer.spec["model"]["vocab"]["".join(pair)]] for pair in (merges[0], merges[-1]))
    assert last < first == 0.0

    def changed(**kept: Any) -> Tokenizer:
        model = {**tokenizer.spec["model"], **{k: v for k, v in kept.items() if k == "merges"}}
        steps = {k: v for k, v in kept.items() if k != "merges"}
        return Tokenizer({**tokenizer.spec, **steps, "model": model}, names=tokenizer.names)

    twice = next(i for i, pair in enumerate(merges) if "".join(pair) == "".join(merges[i - 1]))
    unless_there = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    for wrong, sentence in (
        (changed(merges=merges[:twice] + merges[twice + 1 :]), "are never joined"),
        (changed(merges=merges[:twice] + merges[twice + 1 :] + [merges[twice]]), "do not follow one another"),
        (changed(normalizer=None), "does not write spaces as ▁"),
        (changed(normalizer=None, pre_tokenizer=unless_there), "has the step"),
    ):
        with pytest.raises(ValueError, match=sentence):
            gguf_tokenizer(wrong, 1000)


@pytest.mark.parametrize("name", [*(name for name, _, _ in KNOWN), "prefix", "no prefix"])
def test_llama_cpp_spells_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: nothing to compare with")
    known = {known: (patterns, ignores) for known, ignores, patterns in KNOWN}
    tokenizer = eager(*known[name][0], ignore_merges=known[name][1]) if name in known else sentencepiece(prefix=name == "prefix")
    assert difference(vocabulary_file(tokenizer, tmp_path / "vocabulary.gguf"), tokenizer) == ""


def test_a_wrong_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof can fail: GPT-2's cuts under Qwen's name."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: nothing to compare with")
    monkeypatch.setattr("trueline.tokens.gguf.pre_tokenizer", lambda *_: "qwen2")
    tokenizer = eager(*KNOWN[0][2])
    assert "llama.cpp spells" in (difference(vocabulary_file(tokenizer, tmp_path / "vocabulary.gguf"), tokenizer) or "")
