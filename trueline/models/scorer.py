"""Sequences in, one number each out: the scalar head of reward models, and the scorers that objectives are handed.

    ScalarModel   hidden state of a sequence's last token x score_D -> scores_S, or C categories and their expected
                  utility                                                             (lives in decoder.py)
    PolicyScorer  frozen decoder -> summed log-probabilities of the scored tokens     (a Scorer)
    RewardScorer  frozen ScalarModel -> scores                                        (a Scorer)
    prompt_features   mean hidden state of each sequence behind a layer in the middle: what its prompts look like to a model

Left out: value heads per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trueline.models.attention import Layout, tree_tokens
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import fingerprint
from trueline.records import Row
from trueline.store import fingerprint as named


class PolicyScorer:
    """Summed log-probabilities of the scored tokens under a frozen decoder: the reference of DPO and its kin."""

    def __init__(self, model: Decoder, *, temperature: float = 1.0, max_tokens: int = 8192, bf16: bool = False) -> None:
        self.model, self.temperature, self.max_tokens, self.bf16 = model, temperature, max_tokens, bf16
        self.fingerprint = fingerprint(model)

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""

        def sums(layout: Layout) -> Tensor:
            logps_N = self.model.token_logps(layout, temperature=self.temperature).logps_N
            return logps_N.new_zeros(layout.num_sequences).index_add_(0, layout.sequence_of_N, logps_N)

        return scores_of_rows(self.model, rows, sums, self.max_tokens, self.bf16)

    def token_logps(self, rows: Sequence[Row], temperature: float = 1.0) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence float32 [its scored tokens]: log softmax(logits / temperature), in their order."""

        def each(layout: Layout) -> Tensor:
            return self.model.token_logps(layout, temperature=temperature).logps_N

        counts = [[int(scored.sum()) for scored in row.scored] for row in rows]
        found = scores_of_rows(self.model, rows, each, self.max_tokens, self.bf16, [sum(counts_K) for counts_K in counts])
        return [tuple(np.split(logps_N, np.cumsum(counts_K)[:-1])) for logps_N, counts_K in zip(found, counts, strict=True)]

    def token_scores(self, rows: Sequence[Row]) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence float32 [its scored tokens, 2]: the log-prob, and 1 where no token is likelier, else 0."""

        def each(layout: Layout) -> Tensor:
            found = self.model.token_logps(layout)
            return torch.stack([found.logps_N, found.correct_N.float()], 1)

        counts = [[int(scored.sum()) for scored in row.scored] for row in rows]
        found = scores_of_rows(self.model, rows, each, self.max_tokens, self.bf16, [sum(counts_K) for counts_K in counts])
        return [tuple(np.split(scores_N2, np.cumsum(counts_K)[:-1])) for scores_N2, counts_K in zip(found, counts, strict=True)]


class RewardScorer:
    """Scores of a frozen reward model: its score, or the expected utility of its categories; less its shift."""

    def __init__(self, model: ScalarModel, *, max_tokens: int = 8192, bf16: bool = False) -> None:
        self.model, self.max_tokens, self.bf16 = model, max_tokens, bf16
        self.fingerprint = fingerprint(model)
        if model.utilities or model.reward_shift:  # other scores from the same weights
            self.fingerprint = named([self.fingerprint, model.utilities, model.reward_shift])

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        return scores_of_rows(self.model, rows, self.model, self.max_tokens, self.bf16)

    def shares(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K, C]: how likely each category is, worst first."""
        assert self.model.labels > 1, "this reward model has no categories"
        return scores_of_rows(self.model, rows, lambda layout: self.model.logits(layout).softmax(1), self.max_tokens, self.bf16)


def scores_of_rows(
    model: nn.Module, rows: Sequence[Row], run: Callable[[Layout], Tensor], max_tokens: int, bf16: bool,
    counts: Sequence[int] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """What `run` says of the rows, `counts` numbers of each: by default one per sequence."""
    sizes = [len(row.ids) for row in rows] if counts is None else counts
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    out: list[np.ndarray] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in _batches(rows, max_tokens):
            scores_S = run(Layout.tree(batch).to(device)).float().cpu().numpy()
            ends = np.cumsum(sizes[len(out) : len(out) + len(batch)])
            out.extend(np.split(scores_S, ends[:-1]))
    model.train(was_training)
    return out


def _batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows within the token budget; a row above it goes alone."""
    batch: list[Row] = []
    used = 0
    for row in rows:
        size = tree_tokens(row)
        if batch and used + size > max_tokens:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += size
    if batch:
        yield batch


def prompt_features(
    model: Decoder | ScalarModel, prompts: Sequence[np.ndarray], *, layer: int | None = None, max_tokens: int = 8192
) -> np.ndarray:
    """float32 [P, D]: the stream behind layer `layer` (0, 1, ...; default the middle one), averaged over each prompt's tokens."""
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    number = len(decoder.layers) // 2 if layer is None else layer
    if not 0 <= number < len(decoder.layers):
        raise ValueError(f"layer is {number}, and the model has layers 0 to {len(decoder.layers) - 1}")
    kept: list[Tensor] = []
    hook = decoder.layers[number].register_forward_hook(lambda module, given, found: kept.append(found))
    rows = [Row(ids=(np.asarray(ids, dtype=np.int32),), scored=(np.zeros(len(ids), dtype=bool),)) for ids in prompts]

    def means(layout: Layout) -> Tensor:
        decoder(layout)
        lengths = np.diff(layout.last_S.cpu().numpy(), prepend=-1).tolist()  # one sequence per row: they follow one another
        return torch.stack([x_LD.float().mean(0) for x_LD in kept.pop().split(lengths)])

    try:
        found = scores_of_rows(decoder, rows, means, max_tokens, False)
        return np.concatenate(found) if rows else np.zeros((0, decoder.config.hidden_size))
    finally:
        hook.remove()
