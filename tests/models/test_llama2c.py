"""Real trained weights: stories260K of llama2.c, converted, against a float64 reference of logits and greedy text."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.llama2c import convert, read_tokenizer, read_weights, rehearse
from trueline.models.attention import Layout
from trueline.models.files import load_model
from trueline.records import Sampling
from trueline.serve.engine import Engine
from trueline.tokens.tokenizer import load_tokenizer

DATA = Path(os.environ.get("TRUELINE_DATA", "")) / "models" / "stories260K"
real = pytest.mark.skipif(
    not os.environ.get("TRUELINE_DATA") or not DATA.is_dir(),
    reason="TRUELINE_DATA names no folder with models/stories260K",
)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("stories")
    convert(DATA / "stories260K.bin", DATA / "tok512.bin", out)
    return out, json.loads((DATA / "reference_greedy.json").read_text(encoding="utf-8"))


@real
def test_logits_equal_the_reference(stories: Any) -> None:
    """After the first token all logits, and the log-probability of each of the 256 that follow: 1e-4 (given to 1e-6)."""
    folder, reference = stories
    model = load_model(folder)
    ids = np.array(reference["greedy_tokens"], np.int32)
    layout = Layout.packed([ids])
    with torch.no_grad():
        first = model.logits(torch.tensor([reference["bos"]]))[0]
        logps_N = model.token_logps(layout).logps_N
    torch.testing.assert_close(first, torch.tensor(reference["logits_after_bos"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(logps_N, torch.tensor(reference["next_token_logprob"]), atol=1e-4, rtol=0)


@real
def test_greedy_text_equals_the_reference(stories: Any) -> None:
    """Token by token over the cache, and as text."""
    folder, reference = stories
    tokenizer = load_tokenizer(folder)
    [[drawn]] = Engine(load_model(folder)).sample([[reference["bos"]]], Sampling(temperature=0.0, max_new_tokens=256))
    assert drawn.ids.tolist() == reference["greedy_tokens"][1:]
    assert tokenizer.decode(drawn.ids.tolist()).strip() == reference["greedy_text"].strip()
    assert tokenizer.encode(reference["greedy_text"]) == reference["greedy_tokens"][1:]


@real
def test_transformers_reads_it_too(stories: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, reference = stories
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([reference["greedy_tokens"][:64]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], load_model(folder).logits(ids[0]), atol=1e-4, rtol=0)
    assert tokenizer.encode("Once upon a time", add_special_tokens=False) == load_tokenizer(folder).encode(
        "Once upon a time"
    )


def test_there_and_back(tmp_path: Path) -> None:
    """A random model and a small tokenizer, without the real files."""
    rehearse(tmp_path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for data, says in (
        (b"short", "no llama2.c model"),
        (struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512), "and its header asks for 1,056,540"),
        (struct.pack("<7i", 2**31 - 1, 2**31 - 1, 2**31 - 1, 1, 1, 5, 5), "header asks for"),
        (struct.pack("<7i", 64, 172, 5, 7, 4, 512, 512), "is not that of a llama2.c model"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=says):
            read_weights(path)
    path.write_bytes(struct.pack("<ifi", 4, 0.0, 999) + b"abc")
    with pytest.raises(ValueError, match="token 0 is said to have 999 bytes"):
        read_tokenizer(path)
