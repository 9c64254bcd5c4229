"""Stored votes as a judge: who was preferred when people, or another judge, saw the same responses to the same prompt.

    judge = StoredVotes.of(read_rows("votes.jsonl", Comparison), "votes.jsonl")

Votes on a pair are added up over all rows that hold both responses: a ranking is one vote for each of its strict orders and half a
vote to both sides of a tie, counts are the votes that they say. The score of a response is its mean share of the votes against each
other response of the group that it ever met. A response that met none of the others is unknown: it is counted, its prompt is named in
`unjudged`, and its score is the middle of the others, which says nothing.
Left out: chains (A beat B, B beat C), which need a model of strength (the arena's), and responses that differ by a letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from trueline.align.group import prompt_key
from trueline.align.llm_judge import text_of, win_shares
from trueline.records import Comparison, Messages, Ranking
from trueline.store import fingerprint

Pair = tuple[str, str, str]
"""Prompt key, text of one response, text of the other."""


@dataclass(frozen=True)
class StoredVotes:
    """Answers from what was voted before."""

    votes: Mapping[Pair, float]
    """How many preferred the first response of a pair to the second."""
    name: str = "votes"
    tally: Counter[str] = field(default_factory=Counter)
    """Pairs: "known", "unknown"; responses: "unknown responses"."""
    unjudged: set[str] = field(default_factory=set)
    """Keys of prompts with a response that no vote speaks of."""

    @classmethod
    def of(cls, comparisons: Iterable[Comparison], name: str = "votes") -> StoredVotes:
        """From records."""
        votes: Counter[Pair] = Counter()
        for row in comparisons:
            key = prompt_key(row.prompt)
            texts = [text_of(response).strip() for response in row.responses]
            for i, j in combinations(range(len(texts)), 2):
                if isinstance(row.judgement, Ranking):
                    first, second = row.judgement.ranks[i], row.judgement.ranks[j]
                    for_i, for_j = (first < second) + (first == second) / 2, (second < first) + (first == second) / 2
                else:
                    for_i, for_j = row.judgement.counts[i], row.judgement.counts[j]
                votes[key, texts[i], texts[j]] += for_i  # type: ignore[assignment]
                votes[key, texts[j], texts[i]] += for_j  # type: ignore[assignment]
        if not votes:
            raise ValueError(f"{name} holds no comparison: there is nobody's vote to go by")
        return cls(votes, name)

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """Mean share of the votes, one per response."""
        key = prompt_key(prompt)
        texts = [text_of(response).strip() for response in responses]
        shares = [self._share(key, texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)]
        found = win_shares(len(texts), shares)
        known = [score for score in found if score is not None]
        self.tally.update({
            "known": sum(share is not None for share in shares), "unknown": shares.count(None),
            "unknown responses": len(found) - len(known),
        })  # fmt: skip
        if len(known) < len(found):
            self.unjudged.add(key)
        middle = sum(known) / len(known) if known else 0.0
        return [middle if score is None else score for score in found]

    @property
    def fingerprint(self) -> str:
        """Of all votes."""
        return fingerprint(sorted([*pair, number] for pair, number in self.votes.items()))

    def take_unjudged(self) -> set[str]:
        """Keys of prompts since the last call."""
        found = set(self.unjudged)
        self.unjudged.clear()
        return found

    def _share(self, key: str, first: str, second: str) -> float | None:
        ours, theirs = self.votes.get((key, first, second), 0.0), self.votes.get((key, second, first), 0.0)
        return ours / (ours + theirs) if ours + theirs else None

    def lines(self) -> list[str]:
        """What was found, in a sentence."""
        t = self.tally
        return [f"pairs with votes: {t['known']:,}, without: {t['unknown']:,}; responses that nobody voted on: {t['unknown responses']:,}"]
