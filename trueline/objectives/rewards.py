"""From judged responses to what their tokens earn: scores, normalised or not, less the pull to the reference.

    r_t = - beta kl_t + [t is the last token] score          Ziegler et al., 1909.08593, section 2.1; Ouyang et al., 2203.02155, eq. 2

kl_t is an estimator's term (kl.py) of the policy that drew the tokens. `score` is the judge's, with a penalty for a missing end
already taken (missing_eos_penalty), less its running mean and divided by its running deviation where that is asked for: the
statistics are kept in the crew's memory and survive a resume.

Rows get numbers["score"] and numbers["kl"] (log pi - log ref, summed) per response, and tokens["penalty"] = beta kl_t.
Legend: T scored tokens of a response, K responses of a row.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trueline.objectives.advantages import whiten
from trueline.objectives.kl import KLPenalty, kl_terms
from trueline.objectives.pairs import numbers_of
from trueline.objectives.rounds import with_reference_token_logps
from trueline.protocols import Crew
from trueline.records import Row


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What is done to scores before they are learned from."""

    normalize_scores: bool = False
    """Subtract the running mean of all scores so far and divide by their running standard deviation."""
    clip_scores: float = 0.0
    """Cut scores to this distance from 0, after they were normalised; 0 leaves them."""
    whiten_rewards: bool = False
    """Bring the rewards of a round's tokens to variance 1, their mean kept."""

    def __post_init__(self) -> None:
        if self.clip_scores < 0:
            raise ValueError(f"clip_scores is {self.clip_scores}: it must be at least 0")

    def scores(self, rows: Sequence[Row], memory: MutableMapping[str, float]) -> list[np.ndarray]:
        """The score of every response, one array [K] per row; running statistics are brought up to date first."""
        found = [row.numbers["reward"].astype(np.float64) for row in rows]
        if self.normalize_scores and found:
            mean, deviation = running(np.concatenate(found), memory)
            found = [(scores_K - mean) / deviation for scores_K in found]
        return [np.clip(scores_K, -self.clip_scores, self.clip_scores) if self.clip_scores else scores_K for scores_K in found]


def running(scores_S: np.ndarray, memory: MutableMapping[str, float]) -> tuple[float, float]:
    """(mean, standard deviation) of all scores seen so far, these included (Chan et al. 1979); the deviation is 1 where it is 0."""
    count, mean, squares = (memory.get(f"scores/{name}", 0.0) for name in ("count", "mean", "squares"))
    new, here = count + len(scores_S), float(scores_S.mean())
    squares += float(((scores_S - here) ** 2).sum()) + (here - mean) ** 2 * count * len(scores_S) / new
    mean += (here - mean) * len(scores_S) / new
    memory.update({"scores/count": float(new), "scores/mean": mean, "scores/squares": squares})
    return mean, float(np.sqrt(squares / new)) or 1.0


def with_scores(rows: Sequence[Row], crew: Crew, shaping: Shaping) -> list[Row]:
    """The rows with numbers["score"]."""
    scores = shaping.scores(rows, crew.memory)
    return [replace(row, numbers={**row.numbers, "score": s.astype(np.float32)}) for row, s in zip(rows, scores, strict=True)]


def with_penalties(rows: Sequence[Row], crew: Crew, penalty: KLPenalty) -> list[Row]:
    """The rows with tokens["reference_logps"] and ["penalty"], numbers["kl"] and ["kl_coef"]; without a pull, of no penalty."""
    coefficient = penalty.coefficient(crew.memory)
    if not coefficient:
        return [replace(row, tokens={**row.tokens, "penalty": tuple(np.zeros(len(x)) for x in row.tokens["logps"])}) for row in rows]
    found = []
    for row in with_reference_token_logps(rows, crew):
        pairs = [(_double(x), _double(y)) for x, y in zip(row.tokens["logps"], row.tokens["reference_logps"], strict=True)]
        terms = [kl_terms(logps_T, reference_T, penalty.kl_estimator).numpy() for logps_T, reference_T in pairs]
        kl_K = np.array([float((logps_T - reference_T).sum()) for logps_T, reference_T in pairs], np.float32)
        numbers = {**row.numbers, "kl": kl_K, "kl_coef": np.full(len(kl_K), coefficient, np.float32)}
        tokens = {**row.tokens, "penalty": tuple(coefficient * terms_T for terms_T in terms)}
        found.append(replace(row, numbers=numbers, tokens=tokens))
    everything = np.concatenate([row.numbers["kl"] for row in found])
    penalty.steer(crew.memory, float(everything.mean()), len(everything))
    return found


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def token_rewards(rows: Sequence[Row], shaping: Shaping) -> list[np.ndarray]:
    """r_t of every response, row by row, from scores and penalties."""
    rewards = [-penalty_T for row in rows for penalty_T in row.tokens["penalty"]]
    for rewards_T, score in zip(rewards, (score for row in rows for score in row.numbers["score"]), strict=True):
        rewards_T[-1] += score
    return whiten(rewards, shift_mean=False) if shaping.whiten_rewards else rewards


def with_tokens(rows: Sequence[Row], name: str, values: Sequence[np.ndarray]) -> list[Row]:
    """The rows with tokens[name], from one array per response, row by row."""
    left = iter(values)
    return [
        replace(row, tokens={**row.tokens, name: tuple(next(left).astype(np.float32) for _ in row.ids)}) for row in rows
    ]


def with_response_advantages(rows: Sequence[Row], advantages: Sequence[np.ndarray]) -> list[Row]:
    """The rows with tokens["advantages"], from one number per response ([K] per row): all its tokens have it."""
    spread = [
        np.full(len(logps_T), advantage)
        for row, advantages_K in zip(rows, advantages, strict=True)
        for logps_T, advantage in zip(row.tokens["logps"], advantages_K, strict=True)
    ]
    return with_tokens(rows, "advantages", spread)


def response_rewards(row: Row) -> np.ndarray:
    """[K]: score less the penalties of all tokens, what a response earns as one action."""
    return row.numbers["score"].astype(np.float64) - np.array([penalty_T.sum() for penalty_T in row.tokens["penalty"]])


def reward_metrics(
    rows: Sequence[Row], penalty: KLPenalty, device: torch.device | str, *, in_rewards: bool = True
) -> dict[str, tuple[Tensor, float]]:
    """TRL's names, means over responses at the time they were drawn. The chosen estimator is in its metric's name. `in_rewards`:
    the penalty is taken from the rewards; where it is a loss of its own, there is no reward less a penalty."""
    count = float(sum(len(row.ids) for row in rows))
    lost = [float(penalty_T.sum()) for row in rows for penalty_T in row.tokens["penalty"]]
    scores = numbers_of(rows, "score")
    drawn = torch.tensor([-float(logps_T.sum()) for row in rows for logps_T in row.tokens["logps"]])
    found = {"objective/scores": scores, "objective/entropy": drawn}
    if in_rewards:
        found |= {"objective/rlhf_reward": scores - torch.tensor(lost), "objective/non_score_reward": -torch.tensor(lost)}
    if "kl" in rows[0].numbers:
        coefficients = numbers_of(rows, "kl_coef")
        found |= {"objective/kl": numbers_of(rows, "kl"), "objective/kl_coef": coefficients}
        found |= {f"objective/kl_{penalty.kl_estimator}": torch.tensor(lost) / coefficients}
    return {name: (values_S.sum().to(device), count) for name, values_S in found.items()}
