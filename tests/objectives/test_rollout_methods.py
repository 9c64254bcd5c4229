"""PPO, RLOO, REINFORCE++ and GRPO on responses that a small decoder has drawn: ratios, gradients, advantages, filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trueline.align.group import Group
from trueline.align.rollouts import limited
from trueline.align.select import rows as selected
from trueline.align.select import whole_group
from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.models.scorer import PolicyScorer
from trueline.models.value import ActorCritic, ValueScorer, new_actor_critic
from trueline.objectives.base import Batch, Budget
from trueline.objectives.grpo import GRPO, GroupLoss
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO, Critic
from trueline.objectives.ptx import Pretraining, windows_from
from trueline.objectives.reinforce_plus_plus import ReinforcePlusPlus
from trueline.objectives.rewards import Shaping, running
from trueline.objectives.rloo import RLOO
from trueline.objectives.updates import Update
from trueline.protocols import Crew
from trueline.records import TEXT, Message, Row, Sampling
from trueline.serve.engine import Engine

BUDGET, SMALL = Budget(rows=10**6, tokens=10**6), Budget(rows=1, tokens=10**6)
HOT, ENDS = 0.8, (1, 2, 3)


def decoder(seed: int = 0) -> Decoder:
    return new_model(
        DecoderConfig(
            model_type="qwen3", vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, qk_norm=True, tie_word_embeddings=True, initializer_range=0.3,
        ),
        seed,
    )  # fmt: skip


def drawn(model: Decoder, prompts: int = 3, K: int = 4, temperature: float = 1.0, longest: int = 10) -> list[Row]:
    """Responses of this model; the score of one is how many of its tokens are even."""
    asked = [[3 + number, 5, 7 + number] for number in range(prompts)]
    sampling = Sampling(n=K, max_new_tokens=longest, temperature=temperature, seed=4)
    groups = []
    for number, samples in enumerate(Engine(model, stop_ids=ENDS).sample(asked, sampling)):
        scores = tuple(float((sample.ids % 2 == 0).sum()) for sample in samples)
        prompt = (Message(role=TEXT, content=str(number)),)
        groups.append(
            Group(key=f"{number:016x}", prompt=prompt, responses=(prompt,) * K, samples=tuple(samples), scores=scores)
        )
    return [limited(row, longest) for row in selected(groups, whole_group)]


def crew_of(model: Decoder | ActorCritic, reference: Decoder) -> Crew:
    critic = ValueScorer(model) if isinstance(model, ActorCritic) else None
    return Crew(reference=PolicyScorer(reference), critic=critic)


def learner(objective: Any, start: str = "policy") -> Decoder | ActorCritic:
    """What the objective trains, its critic not at 0."""
    if not isinstance(objective, PPO):
        return decoder()
    model = new_actor_critic(decoder(), start)
    torch.nn.init.normal_(model.value.weight, generator=torch.Generator().manual_seed(2))
    return model


def gradients(objective: Any, model: Any, step: Sequence[Batch], crew: Crew) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of the step as the loop takes them, and the means of its metrics."""
    totals = {name: sum(batch.weights[name] for batch in step) for name in step[0].weights}
    sums: dict[str, list[float]] = {}
    model.zero_grad()
    for batch in step:
        losses = objective.loss(model, batch, crew)
        assert losses.terms.keys() == batch.weights.keys()
        sum(term / totals[name] for name, term in losses.terms.items()).backward()
        for name, (total, count) in losses.metrics.items():
            before = sums.get(name, [0.0, 0.0])
            sums[name] = [before[0] + float(total), before[1] + count]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, {name: total / count for name, (total, count) in sums.items() if count}


METHODS = [
    PPO(), PPO(values=Critic(critic="shared"), shaping=Shaping(whiten_rewards=True)), RLOO(), RLOO(normalize_advantages=True),
    ReinforcePlusPlus(), ReinforcePlusPlus(group_baseline=True), GRPO(), GRPO(group=GroupLoss(loss_type="dapo")),
    GRPO(group=GroupLoss(loss_type="dr_grpo"), scale_rewards=False, update=Update(entropy_coef=0.01)),
    GRPO(group=GroupLoss(importance_sampling_level="sequence", mask_truncated_completions=True)),
]  # fmt: skip


@pytest.mark.parametrize("objective", METHODS, ids=lambda one: one.verb)
def test_the_first_ratio_is_1_and_a_step_is_the_same_in_pieces(objective: Any) -> None:
    start = objective.values.critic if isinstance(objective, PPO) else "policy"
    model = learner(objective, start)
    policy = model.decoder if isinstance(model, ActorCritic) else model
    crew = crew_of(model, decoder(seed=1))
    rows = objective.annotate(drawn(policy, temperature=HOT), crew)
    whole, pieces = (next(objective.steps(rows, budget)) for budget in (BUDGET, SMALL))
    assert len(whole) == 1 and len(pieces) == 3
    at_once, said = gradients(objective, model, whole, crew)
    in_pieces, _ = gradients(objective, model, pieces, crew)
    assert said["val/ratio"] == pytest.approx(1, abs=1e-5)  # the sampler's log-probs are the trainer's
    assert said["policy/approxkl_avg"] < 1e-9 and said["policy/clipfrac_avg"] == 0
    assert at_once.keys() == in_pieces.keys()
    for name, gradient in at_once.items():
        assert torch.allclose(gradient, in_pieces[name], atol=1e-5), name
    assert said["objective/kl"] > 0
    if isinstance(objective, GRPO):  # its KL is a loss: there is no reward less a penalty
        assert not {"objective/rlhf_reward", "objective/non_score_reward"} & said.keys()
    else:
        assert said["objective/rlhf_reward"] < said["objective/scores"]
    assert f"objective/kl_{objective.kl.kl_estimator}" in said


def reinforce(model: Decoder, rows: Sequence[Row], advantages: Sequence[np.ndarray], scale: float) -> dict[str, torch.Tensor]:
    """sum_k sum_t A_kt grad -log pi(y_kt) / scale, one response at a time; advantages [T] or one number per response."""
    model.zero_grad()
    flat = [(ids, scored) for row in rows for ids, scored in zip(row.ids, row.scored, strict=True)]
    for (ids, scored), advantage in zip(flat, advantages, strict=True):
        logps_T = model.token_logps(Layout.packed([ids], [scored])).logps_N
        (-(torch.as_tensor(advantage, dtype=torch.float32) * logps_T).sum() / scale).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_rloo_is_reinforce_on_the_first_step() -> None:
    model, reference, beta = decoder(), decoder(seed=1), 0.05
    objective, crew = RLOO(kl=KLPenalty(kl_coef=beta)), crew_of(model, reference)
    drawn_rows = drawn(model)
    found, said = gradients(objective, model, next(objective.steps(objective.annotate(drawn_rows, crew), BUDGET)), crew)
    ours, theirs = (PolicyScorer(one).score(drawn_rows) for one in (model, reference))
    advantages: list[Any] = []
    for row, a, b in zip(drawn_rows, ours, theirs, strict=True):
        R = row.numbers["reward"] - beta * (a - b)
        advantages += [R[k] - np.delete(R, k).mean() for k in range(4)]
    expected = reinforce(model, drawn_rows, advantages, scale=12)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    kl = np.concatenate([a - b for a, b in zip(ours, theirs, strict=True)]).mean()
    assert said["objective/kl"] == pytest.approx(kl, abs=1e-4)


def test_ppo_at_its_limits_is_reinforce_with_a_baseline() -> None:
    """gamma = lambda = 1: advantage = rewards to go - value; the first step's policy gradient is REINFORCE's, the value's a regression."""
    values = Critic(critic="policy", lam=1.0, whiten_advantages=False, cliprange_value=0.0, vf_coef=0.5)
    objective = PPO(values=values, kl=KLPenalty(kl_coef=0.0))
    model = learner(objective)
    assert isinstance(model, ActorCritic)
    crew, rows = crew_of(model, decoder(seed=1)), drawn(model.decoder)
    annotated = objective.annotate(rows, crew)
    told = ValueScorer(model).token_values(rows)
    advantages = [score - v for row, vs in zip(rows, told, strict=True) for score, v in zip(row.numbers["reward"], vs, strict=True)]
    flat = [a for row in annotated for a in row.tokens["advantages"]]
    for ours, theirs in zip(flat, advantages, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for row in annotated:
        for returns, score in zip(row.tokens["returns"], row.numbers["reward"], strict=True):
            assert returns == pytest.approx(np.full(len(returns), score), abs=1e-5)
    found, said = gradients(objective, model, next(objective.steps(annotated, BUDGET)), crew)
    N = sum(len(v) for vs in told for v in vs)
    for name, gradient in reinforce(model.decoder, rows, advantages, scale=N).items():
        assert torch.allclose(found[f"decoder.{name}"], gradient, atol=1e-5), name
    error = np.mean(np.concatenate(advantages) ** 2)
    assert said["loss/value_avg"] == pytest.approx(error / 2, rel=1e-4) and said["val/error"] == pytest.approx(error, rel=1e-4)
    assert "objective/kl" not in said  # nothing pulls to the reference: it is not asked


def test_advantages_of_reinforce_plus_plus() -> None:
    model = decoder()
    objective, crew = ReinforcePlusPlus(kl=KLPenalty(kl_coef=0.1)), crew_of(model, decoder(seed=1))
    rows = objective.annotate(drawn(model), crew)
    everything = np.concatenate([a for row in rows for a in row.tokens["advantages"]])
    assert everything.mean() == pytest.approx(0, abs=1e-5) and everything.std() == pytest.approx(1, abs=1e-4)
    (first, *_), (penalty, *_) = rows[0].tokens["advantages"], rows[0].tokens["penalty"]
    steps = np.diff(first) / penalty[:-1]  # from one token to the next the reward to go loses the penalty already paid
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-3) and steps[0] > 0
    flat = replace(rows[0], numbers={**rows[0].numbers, "reward": np.full(4, 3.0, np.float32)})
    free = ReinforcePlusPlus(kl=KLPenalty(kl_coef=0.0), group_baseline=True).annotate([flat], crew)
    assert all((a == 0).all() for a in free[0].tokens["advantages"])


def test_grpo_filters() -> None:
    model = decoder()
    crew, rows = crew_of(model, decoder(seed=1)), drawn(model)
    assert {0.0, 1.0} == {float(x) for row in rows for x in row.numbers["finished"]}
    masked = GRPO(group=GroupLoss(mask_truncated_completions=True), kl=KLPenalty(kl_coef=0.0))
    (batch,) = next(masked.steps(masked.annotate(rows, crew), BUDGET))
    assert batch.weights["policy"] == sum(float(row.numbers["finished"].sum()) for row in rows)
    assert GRPO(group=GroupLoss(drop_flat_groups=True)).rounds.options == {"drop_flat": True}
    advantages = masked.annotate(rows, crew)[0].tokens["advantages"]
    scores = rows[0].numbers["reward"].astype(np.float64)
    expected = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
    assert [float(a[0]) for a in advantages] == pytest.approx(expected.tolist(), abs=1e-5)
    assert all((a == a[0]).all() for a in advantages)


def test_flat_groups_are_dropped_by_the_selector() -> None:
    groups = [
        Group(key=key, prompt=(), responses=((),) * 2, scores=scores)
        for key, scores in (("a1", (1.0, 1.0)), ("b2", (0.0, 1.0)))
    ]
    rng = np.random.default_rng(0)
    assert [whole_group(group, rng) for group in groups] == [[(0, 1)], [(0, 1)]]
    assert [whole_group(group, rng, drop_flat=True) for group in groups] == [[], [(0, 1)]]


def test_grpo_kl_is_a_loss() -> None:
    """At equal scores only the KL moves the weights: k2's expected gradient is that of KL(pi || ref)."""
    model, reference = decoder(), decoder(seed=1)
    objective = GRPO(kl=KLPenalty(kl_coef=0.5, kl_estimator="k2"), group=GroupLoss(loss_type="dapo"))
    crew = crew_of(model, reference)
    rows = [replace(row, numbers={**row.numbers, "reward": np.ones(4, np.float32)}) for row in drawn(model)]
    found, said = gradients(objective, model, next(objective.steps(objective.annotate(rows, crew), BUDGET)), crew)
    model.zero_grad()
    ours, theirs = (PolicyScorer(one).token_logps(rows) for one in (model, reference))
    pulls = [-0.5 * (a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    for name, gradient in reinforce(model, rows, pulls, scale=sum(map(len, pulls))).items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    assert said["kl/k2"] == pytest.approx(np.concatenate([(p / 0.5) ** 2 / 2 for p in pulls]).mean(), rel=1e-3)


def test_steps_are_passes_of_minibatches_and_end_at_the_target() -> None:
    model = decoder()
    crew = crew_of(model, model)
    objective = RLOO(update=Update(num_iterations=2, num_mini_batches=3, target_kl=0.1))
    rows = objective.annotate(drawn(model), crew)
    assert [len(batch.rows) for (batch,) in objective.steps(rows, BUDGET)] == [1] * 6  # nothing measured: nothing to stop for
    assert objective.rounds.steps == 6
    taken = objective.steps(rows, BUDGET)
    next(taken)
    taken.send({"policy/approxkl_avg": (0.5, 10.0)})
    with pytest.raises(StopIteration):
        taken.send({"policy/approxkl_avg": (1.5, 10.0)})


def test_scores_are_normalised_by_all_there_were() -> None:
    memory: dict[str, float] = {}
    rng = np.random.default_rng(0)
    seen = [rng.normal(3, 2, n) for n in (5, 8, 2)]
    for scores in seen:
        mean, deviation = running(scores, memory)
    everything = np.concatenate(seen)
    assert (mean, deviation) == pytest.approx((everything.mean(), everything.std()))
    assert running(np.ones(3), {})[1] == 1.0
    row = Row(ids=(), scored=(), numbers={"reward": np.array([1.0, 3.0])})
    assert Shaping(normalize_scores=True, clip_scores=0.5).scores([row], {})[0].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Update(num_iterations=0), "num_iterations"),
        (lambda: Update(epsilon=0.0), "epsilon"),
        (lambda: Critic(lam=1.5), "lam"),
        (lambda: Critic(vf_coef=-1.0), "vf_coef"),
        (lambda: Shaping(clip_scores=-1.0), "clip_scores"),
        (lambda: GRPO(kl=KLPenalty()), "k1"),
        (lambda: RLOO(shaping=Shaping(whiten_rewards=True)), "whiten_rewards"),
        (lambda: GroupLoss(loss_type="drgrpo"), "use grpo, dapo or dr_grpo"),  # type: ignore[arg-type]
        (lambda: GroupLoss(importance_sampling_level="seqence"), "use token or sequence"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_nonsense_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_dr_grpo_divides_by_what_could_have_been_drawn() -> None:
    """Half the constant is twice the loss; a mean over tokens does not know it."""
    policy = decoder()
    for loss_type, factor in (("dr_grpo", 2.0), ("dapo", 1.0)):
        objective = GRPO(group=GroupLoss(loss_type=loss_type), kl=KLPenalty(kl_coef=0.0))  # type: ignore[arg-type]
        found = []
        for limit in (10, 20):
            rows = objective.annotate([limited(row, limit) for row in drawn(policy)], Crew())
            ones = [tuple(np.ones_like(one_T) for one_T in row.tokens["advantages"]) for row in rows]
            rows = [replace(row, tokens={**row.tokens, "advantages": one}) for row, one in zip(rows, ones, strict=True)]
            ((batch,),) = objective.steps(rows, BUDGET)
            found.append(float(objective.loss(policy, batch, Crew()).terms["policy"].detach()) / batch.weights["policy"])
        assert abs(found[0]) > 0.1 and found[0] == pytest.approx(factor * found[1])


def test_a_corpus_is_mixed_into_every_step() -> None:
    """PPO-ptx: the gradient is that of PPO plus ptx_coef times that of the windows' mean loss; windows differ from step to step."""
    corpus = [Row(ids=(np.arange(2, 2 + n, dtype=np.int32),), scored=(np.arange(n) > 0,), key=f"w{n}") for n in (4, 5, 6, 7, 8)]
    plain = PPO(update=Update(num_iterations=2))
    mixed = replace(plain, pretraining=Pretraining(ptx_data="texts", ptx_coef=0.5, ptx_windows=1))
    assert mixed.needs == ("reference", "corpus", "critic") and plain.needs == ("reference", "critic")
    model = learner(plain)
    assert isinstance(model, ActorCritic)
    crew, rows = crew_of(model, decoder(seed=1)), drawn(model.decoder)
    with pytest.raises(ValueError, match="pass crew"):
        mixed.annotate(rows, crew)
    crew = replace(crew, corpus=corpus)
    steps = [list(objective.steps(objective.annotate(rows, crew), BUDGET)) for objective in (plain, mixed)]
    alone, _ = gradients(plain, model, steps[0][0], crew)
    model.zero_grad()
    totals = {name: sum(batch.weights[name] for batch in steps[1][0]) for name in steps[1][0][0].weights}
    for batch in steps[1][0]:
        sum(term / totals[name] for name, term in mixed.loss(model, batch, crew).terms.items()).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    windows = [row for batch in steps[1][0] for row in batch.rows if "ptx" in row.numbers]
    assert len(windows) == 6 and len(steps[1]) == 2 and crew.memory["ptx/given"] == 12  # 12 responses, two steps
    model.zero_grad()
    layout = Layout.packed([row.ids[0] for row in windows])
    (-0.5 * model.decoder.token_logps(layout).logps_N.mean()).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(together[name], alone[name] + (p.grad if p.grad is not None else 0), atol=1e-5), name
    keys = [row.key for row in windows_from(corpus, 0, 10)]
    assert sorted(keys[:5]) == sorted(keys[5:]) == [row.key for row in corpus]
    assert [row.key for row in windows_from(corpus, 3, 4)] == keys[3:7]


def test_what_is_needed_is_said() -> None:
    measured_by_others = RLOO(), GRPO(), ReinforcePlusPlus(group_baseline=True)
    assert [one.rounds.fewest for one in (*measured_by_others, PPO(), ReinforcePlusPlus())] == [2, 2, 2, 1, 1]
    assert PPO().needs == ("reference", "critic") and RLOO().needs == ("reference",)
    assert GRPO(kl=KLPenalty(kl_coef=0.0)).needs == ()  # nothing pulls: no copy of the weights


def test_ppo_without_a_critic_says_so() -> None:
    with pytest.raises(ValueError, match="needs a critic"):
        PPO().annotate(drawn(decoder()), Crew(reference=PolicyScorer(decoder())))
