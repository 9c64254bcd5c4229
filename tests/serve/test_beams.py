"""Beam search against enumeration, and against transformers' on a small random model."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from trueline.serve.beams import BeamSearch

END = 0


def chain(V: int, seed: int) -> torch.Tensor:
    """Log-probs of the next token after each token [V, V]."""
    return torch.log_softmax(torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) * 2, 1)


def search_chain(chain_VV: torch.Tensor, search: BeamSearch, first: int) -> BeamSearch:
    newest = [first]
    while not search.done:
        moves = search.step(chain_VV[newest])
        newest = [token for _, token in moves]
        assert [beam.node.token for beam in search.beams if beam.node] == newest
    return search


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_search_wide_enough_finds_the_best_of_all(length_penalty: float) -> None:
    V, limit, width = 4, 4, 12
    for seed in range(10):
        table = chain(V, seed)
        scores = {}
        for length in range(1, limit + 1):
            for ids in product(range(V), repeat=length):
                if END in ids[:-1] or (ids[-1] != END and length < limit):
                    continue
                total = sum(float(table[a, b]) for a, b in zip((1, *ids), ids, strict=False))
                scores[ids] = total / length**length_penalty
        # as wide as there are running beams it is exact; without a length penalty it stops at the true best as well
        search = search_chain(table, BeamSearch(108 if length_penalty else width, [END], limit, length_penalty), 1)
        best = sorted(scores, key=lambda ids: -scores[ids])[:3]
        assert [found.ids for found in search.hypotheses[:3]] == best
        for found in search.hypotheses:
            assert found.score == pytest.approx(scores[found.ids], abs=1e-5)
            assert sum(found.logps) / len(found.ids) ** length_penalty == pytest.approx(found.score, abs=1e-5)
        assert len({found.ids for found in search.hypotheses}) == len(search.hypotheses)


def test_one_beam_is_greedy() -> None:
    table = chain(6, 3)
    search = search_chain(table, BeamSearch(1, [], 7), 2)
    expected, newest = [], 2
    for _ in range(7):
        newest = int(table[newest].argmax())
        expected.append(newest)
    assert search.hypotheses[0].ids == tuple(expected) and search.beams == []


def test_it_stops_when_the_running_beams_cannot_win() -> None:
    """By hand, width 1: the end has probability 0.6, so the first hypothesis beats every longer one (sum of log-probs)."""
    row = torch.tensor([[0.6, 0.3, 0.1]]).log()
    search = BeamSearch(1, [END], 10, length_penalty=0.0)
    assert search.step(row) == [] and search.done and search.hypotheses[0].ids == (END,)
    # scored by the mean, the running beam may still win: log(0.3) / 1 is worse than log(0.6) / 1, so here it stops, too
    search = BeamSearch(2, [END], 10, length_penalty=1.0)
    assert search.step(row) == [(0, 1), (0, 2)] and not search.done  # one hypothesis of two
    assert search.step(row.repeat(2, 1)) == [] and [found.ids for found in search.hypotheses] == [(END,), (1, END)]


def test_it_goes_on_while_a_running_beam_may_win() -> None:
    """By hand: after two steps both hypotheses are kept, but the running beam's mean of log-probs is better than the worse one's."""
    table = torch.tensor([[1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]).log()  # after END, 1, 2
    search = BeamSearch(2, [END], 3, length_penalty=1.0)
    assert search.step(torch.tensor([[0.5, 0.3, 0.2]]).log()) == [(0, 1), (0, 2)]
    moves = search.step(table[[1, 2]])
    assert moves[0] == (0, 1) and [found.ids for found in search.hypotheses] == [(END,), (2, END)]
    assert search.step(table[[token for _, token in moves]]) == []
    assert [found.ids for found in search.hypotheses] == [(1, 1, 1), (END,)]
    assert search.hypotheses[0].score == pytest.approx(float(torch.tensor(0.3 * 0.8 * 0.8).log()) / 3)


def test_an_end_that_is_not_among_the_best_is_no_hypothesis() -> None:
    search = BeamSearch(1, [END], 9)
    assert search.step(torch.tensor([[0.4, 0.5, 0.1]]).log()) == [(0, 1)] and search.hypotheses == []


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
def test_hypotheses_are_those_of_transformers(length_penalty: float) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    V = 16
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    lengths = set()
    for width, stops, limit, prompt in (
        (1, [3], 6, [5, 6]),
        (2, [3], 12, [7]),
        (4, [3, 8], 10, [1, 2, 9]),
        (5, [3, 8, 11, 5], 14, [4]),
        (3, [], 5, [2]),
        (3, [7], 12, [6, 5]),
        (4, [3, 9], 12, [3]),
    ):
        with torch.inference_mode():
            theirs = model.generate(
                torch.tensor([prompt]), num_beams=width, num_return_sequences=width, max_new_tokens=limit, do_sample=False,
                length_penalty=length_penalty, early_stopping=False, eos_token_id=stops or None, pad_token_id=0,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            search = BeamSearch(width, stops, limit, length_penalty)
            texts = [list(prompt)]
            while not search.done:
                logps_BV = torch.log_softmax(model(torch.tensor(texts)).logits[:, -1].float(), -1)
                texts = [[*texts[row], token] for row, token in search.step(logps_BV)]
        found = search.hypotheses
        for rank in range(width):
            ids = theirs.sequences[rank, len(prompt) :].tolist()
            length = len(found[rank].ids)
            assert tuple(ids[:length]) == found[rank].ids and set(ids[length:]) <= {0, 3}, (width, rank)
            if width > 1:
                assert float(theirs.sequences_scores[rank]) == pytest.approx(found[rank].score, rel=1e-6)
            lengths.add((width, length))
    assert len(lengths) >= (7 if length_penalty > 1 else 14)  # they end in many places
