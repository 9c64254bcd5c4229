"""The listed world: its tables are the probabilities that the shipped layouts and head compute, and its draws follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.files import new_model
from trueline.records import Message, Sampling


def test_responses_are_all_there_is(oracle: Any, small: Any) -> None:
    assert small.responses == [(0,), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert np.allclose(small.reference_PV.sum(1), 1, atol=1e-12)
    assert len(oracle.world.responses_of(3, 4)) == 1 + 3 + 9 + 27 + 81


@pytest.mark.parametrize("kind", ["smooth", "sparse", "trap"])
def test_layouts_give_the_table_s_probabilities(oracle: Any, kind: str) -> None:
    world = oracle.world.make_world(kind, 1, prompts=3)
    policy = oracle.tables.Table(world)
    rows = [world.row(p, range(len(world.responses))) for p in range(3)]
    for layout in (
        Layout.tree(rows),
        Layout.packed([x for r in rows for x in r.ids], [s for r in rows for s in r.scored]),
    ):
        logps_N = policy.token_logps(layout).logps_N
        logps_S = logps_N.new_zeros(layout.num_sequences).index_add(0, layout.sequence_of_N, logps_N)
        assert np.allclose(logps_S.detach().numpy().reshape(3, -1), policy.logps(), atol=1e-5)


def test_a_trap_is_rare_looks_best_and_is_worst(oracle: Any) -> None:
    world = oracle.world.make_world("trap", 4)
    worst_P = world.reward_PV.argmin(1)
    listed = oracle.world.features(world.responses, world.letters)
    for p, worst in enumerate(worst_P):
        others = np.arange(len(world.responses)) != worst
        weights_F = np.linalg.lstsq(listed[others], world.reward_PV[p, others], rcond=None)[0]
        looks_V = listed @ weights_F
        assert np.allclose(looks_V[others], world.reward_PV[p, others]), (
            "all others are linear in letters, neighbours and length"
        )
        if np.linalg.matrix_rank(listed[others]) == np.linalg.matrix_rank(listed):
            assert looks_V.argmax() == worst
        assert world.reference_PV[p, worst] < 0.02
        assert world.reward_PV[p, worst] < world.reward_PV[p, others].min() - 1


def test_a_score_is_one_response_s(oracle: Any, small: Any) -> None:
    model, rows = oracle.tables.ScoreTable(small), [small.row(1, (4, 2)), small.row(0, (6,))]
    with torch.no_grad():
        model.scores[:, 0] = torch.arange(float(small.num_states))
    scores_PV = model.table()
    assert len(np.unique(scores_PV)) == 14, "every response has a number of its own"
    assert model(Layout.tree(rows)).tolist() == [scores_PV[1, 4], scores_PV[1, 2], scores_PV[0, 6]]
    assert [x.tolist() for x in oracle.tables.TableScorer(small, scores_PV).score(rows)] == [
        [scores_PV[1, 4], scores_PV[1, 2]],
        [scores_PV[0, 6]],
    ]


def test_the_judge_reads_the_text_that_a_sampler_s_ids_spell(oracle: Any, small: Any) -> None:
    texts = ["".join(str(t) for t in y if t) for y in small.responses]
    found = oracle.tables.TableJudge(small, small.reward_PV).judge(
        small.messages(1), [(Message(role="assistant", content=text),) for text in texts]
    )
    assert found == small.reward_PV[1].tolist()


def test_draws_follow_the_live_table(oracle: Any, small: Any) -> None:
    policy = oracle.tables.Table(small)
    with torch.no_grad():
        policy.logits += torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0))
    sampler = oracle.tables.TableSampler(small)
    sampler.load(policy, "now")
    drawn = sampler.sample([np.array(prompt) for prompt in small.prompts], Sampling(n=4000, seed=1))
    for p, samples in enumerate(drawn):
        counts_V = np.bincount([small.responses.index(tuple(s.ids.tolist())) for s in samples], minlength=7)
        expected_V = 4000 * policy.probs()[p]
        assert ((counts_V - expected_V) ** 2 / expected_V).sum() < 22.5  # chi-square, 6 degrees of freedom, 0.1 %
    sample = drawn[0][0]
    number = small.responses.index(tuple(sample.ids.tolist()))
    assert np.isclose(sample.logps.sum(), policy.logps()[0, number], atol=1e-5)
    assert sample.finish_reason == ("stop" if sample.ids[-1] == 0 else "length")
    again = sampler.sample([np.array(small.prompts[0])], Sampling(n=4000, seed=1))[0]
    assert [s.ids.tolist() for s in again] == [s.ids.tolist() for s in drawn[0]]


def test_a_decoder_lives_in_the_same_world(oracle: Any, small: Any) -> None:
    """Its probabilities of the listed responses sum to one: nothing else can be said."""
    config = DecoderConfig(
        model_type="llama", vocab_size=3, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    assert np.allclose(oracle.tables.probs_of(new_model(config, 0), small).sum(1), 1, atol=1e-5)
