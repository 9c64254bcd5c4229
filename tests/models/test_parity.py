"""Every family against transformers: weights saved there and loaded here, and the reverse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.files import hf_name, load_model, load_scalar_model, save_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture
def theirs(
    loud: Callable[..., None], families: dict[str, tuple[str, dict[str, Any]]], small: dict[str, Any]
) -> Callable[..., Any]:
    """theirs(name, config fields) -> a small transformers model with loud weights."""
    import transformers

    def make(name: str, fields: dict[str, Any], kind: str = "ForCausalLM") -> Any:
        own = {"GPT2ForCausalLM": "GPT2LMHeadModel", "Gemma3TextForCausalLM": "Gemma3ForCausalLM"}
        given = {k: v for k, v in small.items() if name != "GPT2" or k.endswith(("_token_id", "b_size"))}
        given |= deepcopy(fields)  # transformers writes into what it is given
        config = getattr(transformers, name + "Config")(**given, attn_implementation="eager")
        model = getattr(transformers, own.get(name + kind, name + kind))(config).eval()
        loud(model)
        return model

    return make


def test_logits_equal_transformers_both_ways(
    family: str, families: Any, tmp_path: Path, theirs: Any, sequences: Any
) -> None:
    from transformers import AutoModelForCausalLM

    reference = theirs(*families[family])
    reference.save_pretrained(tmp_path / "theirs")
    ids = torch.from_numpy(sequences(0, [40])[0]).long()
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
        ours = load_model(tmp_path / "theirs")
        torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=0)
        save_model(ours, tmp_path / "ours", max_shard_bytes=20_000)
        assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
        back, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert back.config.eos_token_id == reference.config.eos_token_id
        torch.testing.assert_close(back.eval()(ids[None]).logits[0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(load_model(tmp_path / "ours").logits(ids), ours.logits(ids), atol=0, rtol=0)


@pytest.mark.parametrize(
    "variant",
    ["llama2", "mistral_window", "qwen2", "qwen3", "gemma2", "gemma3_window", "gpt2", "pythia", "phi3", "olmo2",
     "stablelm_2_12b"],
)  # fmt: skip
def test_scores_equal_transformers_both_ways(
    variant: str, families: Any, tmp_path: Path, theirs: Any, sequences: Any
) -> None:
    """Granite is not here: transformers has no classifier of that family."""
    from transformers import AutoModelForSequenceClassification

    name, fields = families[variant]
    reference = theirs(name, {**fields, "num_labels": 1}, "ForSequenceClassification")
    reference.save_pretrained(tmp_path / "theirs")
    ids = [x % 58 + 3 for x in sequences(1, [9, 17, 4])]
    padded = torch.zeros(3, 17, dtype=torch.long)
    for row, x in zip(padded, ids, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    with torch.no_grad():
        expected = reference(padded, attention_mask=(padded != 0).long()).logits[:, 0]
        ours = load_scalar_model(tmp_path / "theirs")
        torch.testing.assert_close(ours(Layout.packed(ids)), expected, atol=1e-4, rtol=0)
        save_model(ours, tmp_path / "ours")
        back, info = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"] and back.config.num_labels == 1
        torch.testing.assert_close(
            back.eval()(padded, attention_mask=(padded != 0).long()).logits[:, 0], expected, atol=1e-4, rtol=0
        )


def test_config_keys_of_older_transformers(tmp_path: Path, families: Any, theirs: Any, sequences: Any) -> None:
    reference = theirs(*families["llama3"])
    reference.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    scaling = raw.pop("rope_parameters")
    raw |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ids = torch.from_numpy(sequences(0, [40])[0]).long()
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path).logits(ids), reference(ids[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["llama2", "gemma2", "gemma3", "granite", "gpt2"])
def test_neftune_is_added_where_transformers_adds_it(
    variant: str, families: Any, tmp_path: Path, theirs: Any, sequences: Any
) -> None:
    """On what the embedding gives: in Gemma that is multiplied already, in Granite the noise is multiplied with it."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    reference = theirs(*families[variant])
    reference.save_pretrained(tmp_path)
    embedding = reference.get_input_embeddings()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    ids = torch.from_numpy(sequences(0, [40])[0]).long()
    ours = load_model(tmp_path)
    ours.neftune_alpha = 5.0
    with torch.no_grad():
        clean = ours.eval().logits(ids)
        embedding.train()
        ours.train()
        torch.manual_seed(0)
        expected = reference(ids[None]).logits[0]
        torch.manual_seed(0)
        torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=0)
    assert float((clean - expected).abs().max()) > 0.01


@pytest.mark.parametrize("variant", ["qwen3", "gemma2", "gemma3", "olmo2", "granite", "stablelm"])
def test_gradients_equal_transformers(variant: str, families: Any, tmp_path: Path, theirs: Any, sequences: Any) -> None:
    """Every parameter that the files store on its own; those of fused matrices are compared in test_families."""
    reference = theirs(*families[variant])
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    x = sequences(2, [30])[0]
    layout = Layout.packed([x])
    ours.token_logps(layout).logps_N.sum().backward()
    ids = torch.from_numpy(x).long()[None]
    logps = reference(ids).logits[0, :-1].log_softmax(-1)
    logps[np.arange(29), ids[0, 1:]].sum().backward()
    for name, parameter in ours.named_parameters():
        expected = reference.get_parameter(hf_name(name, ours.config.model_type)).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_greedy_text_equals_transformers(families: Any, tmp_path: Path, theirs: Any, sequences: Any) -> None:
    """The cache of windows, caps and learned positions, token by token, against transformers' own generation."""
    from trueline.records import Sampling
    from trueline.serve.engine import Engine

    for variant in (
        "gemma2",
        "gemma3",
        "gpt2",
        "pythia",
        "mistral_window",
        "olmo2",
        "granite",
        "stablelm",
        "phi3_window",
    ):
        reference = theirs(*families[variant])
        reference.save_pretrained(tmp_path / variant)
        prompt = sequences(3, [11])[0] % 58 + 3
        expected = reference.generate(
            torch.from_numpy(prompt).long()[None], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, 11:]
        engine = Engine(load_model(tmp_path / variant), stop_ids=())
        [[drawn]] = engine.sample([prompt], Sampling(temperature=0.0, max_new_tokens=20))
        assert drawn.ids.tolist() == expected.tolist(), variant
