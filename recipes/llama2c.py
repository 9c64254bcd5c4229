"""A model of llama2.c, weights and tokenizer, as a Hugging Face directory.

    python -m recipes.llama2c --model stories260K.bin --tokenizer tok512.bin --out out/stories260K
    trueline generate "Once upon a time" --model out/stories260K --temperature 0 --max_new_tokens 200

Cost: under a second for 260 thousand parameters. The directory loads in Trueline and in transformers.

    weights     7 int32 (dim, hidden, layers, heads, kv heads, vocabulary, context), then float32, one kind after another;
                a negative vocabulary says that the output head is a matrix of its own
    tokenizer   int32, then per token: float32 score, int32 length, bytes (SentencePiece's pieces, spaces as spaces)

llama2.c rotates neighbours (2 i, 2 i + 1); Hugging Face's Llama rotates halves (i, i + E / 2): rows of q and k are
reordered. Format: https://github.com/karpathy/llama2.c (export.py, version 0).
"""

from __future__ import annotations

import argparse
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import load_model, new_model, save_model
from trueline.tokens.tokenizer import Tokenizer, load_tokenizer

HEADER = struct.Struct("<7i")
SPECIAL = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
TEXTS = ("<unk>", "<s>", "</s>")


def read_weights(path: Path) -> Decoder:
    """The decoder of a llama2.c file. ValueError where its size is not what its header says."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ValueError(f"{path} has {size} bytes: no llama2.c model.")
    dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack(head)
    tied, vocab = vocab > 0, abs(vocab)
    if min(dim, hidden, layers, heads, kv_heads, vocab, context) < 1 or dim % heads or heads % kv_heads:
        raise ValueError(f"{path}: the header {HEADER.unpack(head)} is not that of a llama2.c model.")
    width = dim // heads
    kv = kv_heads * width
    blocks = {
        "embed": (vocab, dim), "attention_norm": (layers, dim), "q": (layers, dim, dim), "k": (layers, kv, dim),
        "v": (layers, kv, dim), "o": (layers, dim, dim), "mlp_norm": (layers, dim), "gate": (layers, hidden, dim),
        "down": (layers, dim, hidden), "up": (layers, hidden, dim), "norm": (dim,), "cos": (context, width // 2),
        "sin": (context, width // 2), **({} if tied else {"head": (vocab, dim)}),
    }  # fmt: skip
    wanted = HEADER.size + 4 * sum(math.prod(shape) for shape in blocks.values())
    if wanted != size:
        raise ValueError(f"{path} has {size:,} bytes and its header asks for {wanted:,}: fetch it again.")
    flat = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=HEADER.size).astype(np.float32))
    parts = flat.split([math.prod(shape) for shape in blocks.values()])
    t = {name: part.view(shape) for (name, shape), part in zip(blocks.items(), parts, strict=True)}
    config = DecoderConfig(
        model_type="llama", vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width, max_position_embeddings=context,
        norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    state = {"embed_tokens.weight": t["embed"], "norm.weight": t["norm"]}
    if not tied:
        state["lm_head.weight"] = t["head"]
    for i in range(layers):
        state |= {
            f"layers.{i}.self_attn.q_proj.weight": halves(t["q"][i], width),
            f"layers.{i}.self_attn.k_proj.weight": halves(t["k"][i], width),
            f"layers.{i}.self_attn.v_proj.weight": t["v"][i],
            f"layers.{i}.self_attn.o_proj.weight": t["o"][i],
            f"layers.{i}.mlp.gate_proj.weight": t["gate"][i],
            f"layers.{i}.mlp.up_proj.weight": t["up"][i],
            f"layers.{i}.mlp.down_proj.weight": t["down"][i],
            f"layers.{i}.input_layernorm.weight": t["attention_norm"][i],
            f"layers.{i}.post_attention_layernorm.weight": t["mlp_norm"][i],
        }
    model = Decoder(config)
    model.load_state_dict(state)
    return model


def halves(rows_OD: Tensor, width: int) -> Tensor:
    """Rows of each head: the first of every pair, then the second of every pair."""
    return rows_OD.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


def read_tokenizer(path: Path) -> Tokenizer:
    """Pieces and scores as byte-pair merges: better scores first, and for a piece every way to make it of two others."""
    data = path.read_bytes()
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 <= length <= len(data) - at - 8:
            raise ValueError(f"{path}: token {len(pieces)} is said to have {length} bytes; no tokenizer of llama2.c.")
        pieces.append(data[at + 8 : at + 8 + length].decode("utf-8").replace(" ", "\u2581"))
        scores.append(score)
        at += 8 + length
    pieces[:3] = TEXTS
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i in sorted(range(3, len(pieces)), key=lambda i: -scores[i]):
        piece = pieces[i]
        if not (piece.startswith("<0x") and len(piece) == 6):
            merges += [
                [piece[:n], piece[n:]] for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab
            ]
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, text in enumerate(TEXTS)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip
    return Tokenizer(spec, names={role: TEXTS[i] for role, i in SPECIAL.items()}, config={"add_bos_token": True})


def convert(model: Path, tokenizer: Path | None, out: Path) -> Path:
    """Writes the directory."""
    save_model(read_weights(model), out)
    if tokenizer is not None:
        read_tokenizer(tokenizer).save(out)
    return out


def write_weights(model: Decoder, path: Path) -> None:
    """The reverse of `read_weights`: what the rehearsal converts."""
    c, state = model.config, model.state_dict()
    parts = [f"layers.{{}}.{name}.weight" for name in (
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")]  # fmt: skip
    with open(path, "wb") as file:
        sizes = c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads
        vocab = c.vocab_size if c.tie_word_embeddings else -c.vocab_size
        file.write(HEADER.pack(*sizes, vocab, c.max_position_embeddings))
        file.write(state["embed_tokens.weight"].numpy().tobytes())
        for part in parts:
            for i in range(c.num_hidden_layers):
                weight = state[part.format(i)]
                if part.endswith(("q_proj.weight", "k_proj.weight")):
                    weight = weight.unflatten(0, (-1, 2, c.head_dim // 2)).transpose(1, 2).flatten(0, 2)
                file.write(weight.contiguous().numpy().tobytes())
        file.write(state["norm.weight"].numpy().tobytes())
        file.write(bytes(4 * c.max_position_embeddings * c.head_dim))  # the tables of cos and sin, which nobody reads
        if not c.tie_word_embeddings:
            file.write(state["lm_head.weight"].numpy().tobytes())


def rehearse(folder: Path) -> None:
    """A random model there and back, tied and not; a tokenizer of bytes and three pieces."""
    for tied in (True, False):
        config = DecoderConfig(
            model_type="llama", vocab_size=262, hidden_size=16, intermediate_size=24, num_hidden_layers=2, norm_eps=1e-5,
            num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=32, tie_word_embeddings=tied,
        )  # fmt: skip
        model = new_model(config, seed=1)
        write_weights(model, folder / "model.bin")
        pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), " ", "a", " a"]
        scores = [*(0.0 for _ in range(256)), -2.0, -1.0, 0.0]
        with open(folder / "tok.bin", "wb") as file:
            file.write(struct.pack("<i", 8))
            for piece, score in [*((text, 0.0) for text in TEXTS), *zip(pieces, scores, strict=True)]:
                file.write(struct.pack("<fi", score, len(piece)) + piece.encode())
        out = convert(folder / "model.bin", folder / "tok.bin", folder / f"out_{tied}")
        ids = torch.arange(20)
        with torch.no_grad():
            torch.testing.assert_close(load_model(out).logits(ids), model.logits(ids), atol=0, rtol=0)
        assert load_tokenizer(out).encode("a a!") == [261, 261, 36]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the .bin file of the weights")
    parser.add_argument("--tokenizer", type=Path, help="the .bin file of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    args = parser.parse_args()
    print(convert(args.model, args.tokenizer, args.out))


if __name__ == "__main__":
    main()
