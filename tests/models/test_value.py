"""An actor with its critic: what it computes, where it starts, what a checkpoint keeps of it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import new_model, save_model
from trueline.models.head import entropies
from trueline.models.value import ActorCritic, ValueScorer, load_critic, new_actor_critic, save_critic
from trueline.records import Row


def decoder(seed: int = 0, tied: bool = True) -> Decoder:
    return new_model(
        DecoderConfig(
            model_type="qwen3", vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, qk_norm=True, tie_word_embeddings=tied, pad_token_id=0, initializer_range=0.3,
        ),
        seed,
    )  # fmt: skip


def rows() -> list[Row]:
    """Two prompts with two responses each; the responses differ from their first token on."""
    ids = [[(1, 2, 3, 4, 5), (1, 2, 3, 7)], [(8, 9, 10), (8, 9, 11, 12, 13, 14)]]
    prompts = (3, 2)
    return [
        Row(
            ids=tuple(np.array(x, np.int32) for x in sequences), scored=tuple(np.arange(len(x)) >= P for x in sequences), key=f"{P}"
        )
        for sequences, P in zip(ids, prompts, strict=True)
    ]


def with_value(model: ActorCritic, seed: int = 1) -> ActorCritic:
    torch.nn.init.normal_(model.value.weight, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("start", ["shared", "policy"])
def test_values_are_read_where_tokens_are_predicted(start: str) -> None:
    model = with_value(new_actor_critic(decoder(), start))
    layout = Layout.tree(rows())
    scores, values = model.scores_and_values(layout)
    assert torch.allclose(scores.logps_N, model.decoder.token_logps(layout).logps_N, atol=1e-6)
    assert torch.allclose(values, model.values(layout), atol=1e-6)
    trunk = model.trunk or model.decoder
    expected = []
    for row in rows():  # each sequence alone, by the definition: the state before the token
        for ids, scored in zip(row.ids, row.scored, strict=True):
            hidden = trunk(Layout.packed([ids]))
            expected += [(hidden[t - 1] @ model.value.weight[0]).item() for t in np.flatnonzero(scored)]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    told = ValueScorer(model).token_values(rows())
    assert [len(x) for row in told for x in row] == [2, 1, 1, 4]
    assert np.concatenate([x for row in told for x in row]).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_new_head_says_0_and_a_shared_trunk_learns_from_both() -> None:
    model, layout = new_actor_critic(decoder(), "shared"), Layout.tree(rows())
    _, values = model.scores_and_values(layout)
    assert values.tolist() == [0.0] * 8
    with_value(model)
    _, values = model.scores_and_values(layout)
    values.square().sum().backward()
    assert model.decoder.layers[0].mlp.up_proj.weight.grad is not None
    separate = with_value(new_actor_critic(decoder(), "policy"))
    separate.values(layout).square().sum().backward()
    assert separate.decoder.layers[0].mlp.up_proj.weight.grad is None
    assert separate.trunk is not None and separate.trunk.layers[0].mlp.up_proj.weight.grad is not None


def test_a_copy_has_no_output_head() -> None:
    model = new_actor_critic(decoder(tied=False), "policy")
    assert not any(name.startswith("trunk.lm_head") for name, _ in model.named_parameters())
    assert any(name.startswith("decoder.lm_head") for name, _ in model.named_parameters())


def test_a_critic_starts_from_a_reward_model(tmp_path: Path) -> None:
    reward = ScalarModel(decoder(seed=3))
    torch.nn.init.normal_(reward.score.weight, generator=torch.Generator().manual_seed(5))
    save_model(reward, tmp_path / "reward")
    save_model(decoder(), tmp_path / "policy")
    model, layout = new_actor_critic(decoder(), str(tmp_path / "reward")), Layout.tree(rows())
    after_last = reward(Layout.packed([row.ids[0][:-1] for row in rows()]))  # the score where the last token is predicted
    assert model.values(layout)[[1, 3]].tolist() == pytest.approx(after_last.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="is a language model"):
        new_actor_critic(decoder(), str(tmp_path / "policy"))


def test_a_checkpoint_keeps_the_critic(tmp_path: Path) -> None:
    for start in ("shared", "policy"):
        model = with_value(new_actor_critic(decoder(), start))
        save_critic(model, tmp_path)
        other = new_actor_critic(decoder(), start)
        load_critic(other, tmp_path)
        layout = Layout.tree(rows())
        assert torch.equal(model.values(layout), other.values(layout))


def test_entropies_and_their_gradient() -> None:
    """Against torch's own softmax, cut into chunks of two rows."""
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(30, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.arange(1.0, 6.0)
    found = entropies(hidden, weight, temperature=0.7, cap=4.0, chunk_bytes=2 * 4 * 30)
    (weights * found).sum().backward()
    again = [copy.deepcopy(x.detach()).requires_grad_() for x in (hidden, weight)]
    p = (((again[0] @ again[1].T) / 4).tanh() * 4 / 0.7).softmax(1)
    expected = -(p * p.log()).sum(1)
    (weights * expected).sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    for ours, theirs in zip((hidden, weight), again, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
