"""Numbers of a config.json: what cannot be computed is refused by file, key and value; what is read can be computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.families.keys import NUMBERS
from trueline.models.files import load_model, new_model, save_model

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama2", {"rope_theta": -1.0}, r"rope_theta = -1\.0 should be a number above 0"),
    ("llama2", {"rope_theta": 0}, r"rope_theta = 0 should be a number above 0"),
    ("llama2", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, r"rope_theta = 0\.0 should be"),
    ("llama2", {"rms_norm_eps": -1e-6}, r"rms_norm_eps = -1e-06 should be a number of at least 0"),
    ("llama2", {"initializer_range": -0.1}, r"initializer_range = -0\.1 should be a number of at least 0"),
    ("llama2", {"rope_theta": float("nan")}, "rope_theta = nan should be"),
    ("llama2", {"rope_theta": 1e300}, r"rope_theta = 1e\+300 should be a number above 0, at most 1e\+30"),
    ("llama_linear", {"factor": 0.0}, r"factor = 0\.0 should be"),
    ("llama3", {"factor": -8.0}, r"factor = -8\.0 should be"),
    ("llama3", {"high_freq_factor": 1.0}, r"low_freq_factor = 1\.0, high_freq_factor = 1\.0: the second should be above"),
    ("llama3", {"original_max_position_embeddings": 0}, "original_max_position_embeddings = 0 should be"),
    ("qwen2_yarn", {"beta_fast": -32}, "beta_fast = -32 should be"),
    ("qwen2_yarn", {"rope_theta": 1.0}, r"rope_theta = 1\.0 should be above 1 for yarn"),
    ("phi3_longrope", {"original_max_position_embeddings": 1}, "original_max_position_embeddings = 1 should be above 1"),
    ("phi3_longrope", {"attention_factor": 0.0}, r"attention_factor = 0\.0 should be"),
    ("qwen2_window", {"max_window_layers": -1}, "max_window_layers = -1 should be a number of at least 0"),
    ("mistral_window", {"sliding_window": 0}, "sliding_window = 0 should be a whole number of at least 1"),
    ("gemma2", {"query_pre_attn_scalar": -20}, "query_pre_attn_scalar = -20 should be a number above 0"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0 should be a number above 0"),
    ("gemma2", {"attn_logit_softcapping": 0.0}, r"attn_logit_softcapping = 0\.0 should be"),
    ("gemma2", {"final_logit_softcapping": -30.0}, r"final_logit_softcapping = -30\.0 should be"),
    ("gemma3", {"sliding_attention": {"rope_theta": 0.0}}, r"rope_theta of sliding_attention = 0\.0 should be"),
    ("gemma3", {"sliding_attention": {"rope_theta": "x"}}, "rope_theta of sliding_attention = 'x' should be"),
    ("gemma3_window", {"rope_parameters": None, "rope_local_base_freq": -1e4}, r"rope_local_base_freq = -10000\.0 should"),
    ("gemma3_window", {"layer_types": None, "sliding_window_pattern": -6}, "sliding_window_pattern = -6 should be"),
    ("gpt2", {"layer_norm_epsilon": -1.0}, r"layer_norm_epsilon = -1\.0 should be"),
    ("gpt2_variant", {"n_inner": -4}, "n_inner = -4 should be"),
    ("pythia", {"rotary_pct": -0.25, "rope_parameters": None}, r"rotary_pct = -0\.25 should be"),
    ("pythia", {"rotary_pct": 0.1, "rope_parameters": None}, r"partial_rotary_factor = 0\.1: 0 numbers of a head cannot"),
    ("pythia", {"rotary_emb_base": 0, "rope_parameters": None}, "rotary_emb_base = 0 should be"),
    ("granite", {"logits_scaling": 0}, "logits_scaling = 0 should be a number above 0"),
    ("granite", {"embedding_multiplier": -12.0}, r"embedding_multiplier = -12\.0 should be"),
    ("granite", {"attention_multiplier": 0.0}, r"attention_multiplier = 0\.0 should be"),
    ("granite", {"residual_multiplier": float("inf")}, "residual_multiplier = inf should be"),
    ("olmo2", {"rms_norm_eps": float("inf")}, "rms_norm_eps = inf should be"),
    ("stablelm", {"rope_parameters": {"rope_theta": -5, "partial_rotary_factor": 0.5}}, "rope_theta = -5 should be"),
]


@pytest.mark.parametrize(("variant", "change", "says"), REFUSED)
def test_numbers_that_cannot_be_computed(variant: str, change: dict[str, Any], says: str, decoder: Any) -> None:
    raw = decoder(variant).config.to_hf()
    nested = raw.get("rope_parameters") or {}
    for name, value in change.items():
        found = nested.get(name)
        if isinstance(found, dict):
            found.update(value)
        elif name in (*nested, *NUMBERS):
            nested[name] = value
            raw.pop(name, None)
        else:
            raw[name] = value
    with pytest.raises(ValueError, match=rf"^models/x/config\.json: .*{says}[^\n]*\.$"):
        DecoderConfig.from_hf(raw, "models/x/config.json")


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every number inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from numbers(inner, (*path, key))
    if type(value) in (int, float):
        yield path


@torch.no_grad()
def test_what_is_read_can_be_computed(family: str, decoder: Callable[[str], Decoder]) -> None:
    """Every number of the family's config.json becomes 0, negative, huge, tiny or none: refused by name, or finite logits."""
    config = decoder(family).config
    written = json.dumps(config.to_hf())
    ids = torch.arange(3, 8)
    for place in numbers(json.loads(written)):
        for value in (0, -1, 1, 1e-9, 1e12, float("nan"), float("inf"), "1"):
            raw = json.loads(written)
            inner = raw
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                found = DecoderConfig.from_hf(raw, "a/config.json")
            except ValueError as error:
                said = str(error)
                assert said.startswith("a/config.json: ") and "\n" not in said, said
                continue
            if found == config or found.vocab_size < 8:
                continue
            model = new_model(replace(found, initializer_range=0.02), 0)
            assert bool(model.logits(ids[: found.max_length]).isfinite().all()), (place, value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"])
def test_sizes_beyond_the_weights_allocate_nothing(key: str, tiny: Any, tmp_path: Path) -> None:
    path = save_model(tiny(), tmp_path) / "config.json"
    for size in (1 << 31, 1 << 62, 10**30):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: size}))
        with pytest.raises(ValueError, match=rf"{tmp_path}.*"):
            load_model(tmp_path)


def test_the_defaults_are_one_family() -> None:
    """What a config made in Python leaves out fits the model_type that it has by default: it is read back as it was."""
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = DecoderConfig(**sizes, num_key_value_heads=2, head_dim=8)
    assert config.model_type == "llama" and DecoderConfig.from_hf(config.to_hf()) == config
    with torch.device("meta"):
        again = Decoder(DecoderConfig.from_hf(config.to_hf()))
    assert Decoder(config).state_dict().keys() == again.state_dict().keys()
