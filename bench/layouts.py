"""Forward and backward of the shipped base: what trees, packing and the fused head cost against the plain way.

Claim: on the CPU (1) preference rows cost less as trees than as separate sequences, (2) packed rows save
the padding of a batch of transformers, (3) never holding all logits is paid for in time, most at a large vocabulary.

    python bench/layouts.py [--repeats 7] [--quick]    two minutes on two cores; --quick only shows that it runs

Compared in one process: float32, uncompiled, the same weights and scored tokens, gradients of all parameters:
(1) `Layout.tree` with `Layout.packed`: prompts of 90-130 tokens, K responses of 10-20, only responses scored;
(2) our decoder and head with transformers' Qwen3ForCausalLM (sdpa, padded right, attention mask, its own loss), every
    token scored: sequences of 32-256 tokens, and the same number of tokens in sequences of one length;
(3) `token_logps` with torch's cross_entropy of all logits, V = 4,096 and V = 151,936 (Qwen3's own).
Both sides must agree on the loss to 1e-4 before anything is timed. Each repeat times both sides in turn and gives one
ratio. Building the layouts is timed; transformers gets its padded tensors ready-made. Left out: memory, other devices.

Legend: B sequences, L longest one, T tokens, D width, V vocabulary, K responses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from trueline.models.decoder import Decoder
from trueline.models.files import load_model
from trueline.models.head import token_logps
from trueline.models.layout import Layout
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Row


class Case(NamedTuple):
    """One line of the table: two ways to the same loss and gradients."""

    name: str
    positions: str
    ours: Callable[[], float]
    other: Callable[[], float]


def step(model: Decoder, layout: Layout, equal_weights: bool) -> float:
    model.zero_grad()
    loss = -model.token_logps(layout, equal_weights=equal_weights).logps_N.mean()
    loss.backward()
    return float(loss.detach())


def tree_case(model: Decoder, rng: np.random.Generator, num_rows: int, responses: int) -> Case:
    """Preference rows as trees, and every response with its prompt on its own."""
    rows = []
    for _ in range(num_rows):
        lengths = (rng.integers(90, 131), *rng.integers(10, 21, responses))
        prompt, *branches = (rng.integers(0, model.config.vocab_size, n) for n in lengths)
        ids = tuple(np.concatenate((prompt, x)) for x in branches)
        rows.append(Row(ids=ids, scored=tuple(np.arange(len(x)) >= len(prompt) for x in ids)))
    separate, scored = [x for row in rows for x in row.ids], [x for row in rows for x in row.scored]
    return Case(
        f"tree, {num_rows} rows, K = {responses} / packed",
        f"{Layout.tree(rows).num_tokens:,} / {sum(map(len, separate)):,}",
        lambda: step(model, Layout.tree(rows), False),
        lambda: step(model, Layout.packed(separate, scored), False),
    )


def padding_case(model: Decoder, peer: transformers.Qwen3ForCausalLM, ids: list[np.ndarray], name: str) -> Case:
    """Rows of mixed length without padding, and transformers' model on a padded batch of the same weights."""
    labels_BL = pad_sequence([torch.from_numpy(x) for x in ids], batch_first=True, padding_value=-100)
    ids_BL, mask_BL = labels_BL.clamp(min=0), (labels_BL >= 0).long()

    def other() -> float:
        peer.zero_grad()
        loss = peer(input_ids=ids_BL, attention_mask=mask_BL, labels=labels_BL, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    name, positions = f"packed, {name} / transformers", f"{sum(map(len, ids)):,} / {ids_BL.numel():,}"
    return Case(name, positions, lambda: step(model, Layout.packed(ids), True), other)


def head_case(tokens: int, width: int, vocabulary: int, equal_weights: bool) -> Case:
    """The fused head, and cross-entropy on all logits."""
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight_VD = (torch.randn(vocabulary, width, generator=generator) * 0.02).requires_grad_()
    targets_T = torch.randint(vocabulary, (tokens,), generator=generator)

    def run(fused: bool) -> float:
        hidden_TD.grad = weight_VD.grad = None
        if fused:
            loss = -token_logps(hidden_TD, weight_VD, targets_T, equal_weights=equal_weights).logps_N.mean()
        else:
            loss = cross_entropy(hidden_TD @ weight_VD.T, targets_T)
        loss.backward()
        return float(loss.detach())

    name = f"head, V = {vocabulary:,}, {'equal' if equal_weights else 'any'} weights / full logits"
    return Case(name, f"{tokens:,} / {tokens:,}", lambda: run(True), lambda: run(False))


def table(cases: list[Case], repeats: int) -> str:
    """Medians of the times, and median and extremes of the repeats' ratios."""
    for case in cases:  # the warm-up, too
        ours, other = case.ours(), case.other()
        assert abs(ours - other) < 1e-4, f"{case.name}: the losses differ, {ours} and {other}"
    seconds = np.zeros((len(cases), repeats, 2))
    for repeat in range(repeats):
        for i, case in enumerate(cases):
            for side in (0, 1) if repeat % 2 else (1, 0):  # neither side always goes first
                start = time.perf_counter()
                (case.ours, case.other)[side]()
                seconds[i, repeat, side] = time.perf_counter() - start
    lines = ["| ours / other | positions | ours, ms | other, ms | other / ours | min-max |", "|---" * 6 + "|"]
    for case, times in zip(cases, seconds, strict=True):
        ours_ms, other_ms = 1000 * np.median(times, axis=0)
        ratios = times[:, 1] / times[:, 0]
        spread = f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f}"
        lines.append(f"| {case.name} | {case.positions} | {ours_ms:.0f} | {other_ms:.0f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every case in one run, interleaved, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="times each side runs")
    parser.add_argument("--quick", action="store_true", help="small shapes, two repeats")
    args = parser.parse_args()
    repeats, cut = (2, 8) if args.quick else (max(1, args.repeats), 1)
    folder, rng = base_model_dir(), np.random.default_rng(0)
    model = load_model(folder).train()
    peer = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    peer.train()
    count, width, vocabulary = 16 // cut, model.config.hidden_size, model.config.vocab_size
    mixed = [rng.integers(0, vocabulary, n) for n in np.linspace(32, 256, count).round().astype(int)]
    equal = [rng.integers(0, vocabulary, 144) for _ in range(count)]
    cases = [tree_case(model, rng, 16 // cut, 2), tree_case(model, rng, 8 // cut, 8)]
    cases += [padding_case(model, peer, ids, name) for ids, name in ((mixed, "32-256 long"), (equal, "144 long"))]
    cases += [head_case(2048 // cut, width, vocabulary, equal_weights) for equal_weights in (True, False)]
    cases += [head_case(256 // cut, width, 151_936 // cut, equal_weights) for equal_weights in (True, False)]
    print(f"{date.today()}, torch {torch.__version__}, transformers {transformers.__version__}, float32,")
    print(f"{torch.get_num_threads()} threads, {repeats} repeats\n\n{table(cases, repeats)}")


if __name__ == "__main__":
    main()
