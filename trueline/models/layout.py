"""Which token may attend to which, without padding: packed sequences, trees that share a prefix, steps over a cache.

    packed   | seq 0 | seq 1 | ...                 every sequence alone, back to back
    tree     | prompt | branch 0 | branch 1 | ...  per row; a branch attends to its prompt and to itself
    cached   | new tokens of a | of b |            each attends to what the blocks of its table hold, and to itself

A Layout is a flat stream of T tokens cut into spans; a span attends causally to itself and fully to its parent span.
Positions restart with every sequence, and `predicted_by_N` says which output predicts each scored token: nobody
shifts by one. A sliding window of W tokens (a query sees itself and the W - 1 tokens before it) is a property of a layer,
not of the layout: `pieces_within` cuts the same spans into bands.

Legend: T tokens, N scored tokens, S sequences, G groups of heads, X heads of a group, E width of a head.

Left out: bidirectional and cross attention, and nesting deeper than prefix and branches (a row whose
branches share more among themselves computes that part once per branch; results are the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueline.models.cache import BLOCK_SIZE
from trueline.records import Row


class Span(NamedTuple):
    """Consecutive tokens of the stream that belong together."""

    start: int
    length: int
    parent: int
    """Index of the span that comes before this one in its sequence, or -1."""


WINDOW_ROWS = 64, 512
"""A windowed span is computed in blocks of as many queries as the window is long, within these bounds."""


class Piece(NamedTuple):
    """One call of an attention kernel: `blocks` blocks of queries that follow one another, and the keys of each."""

    own: bool
    """True: keys of the queries' own span; every token is a query of exactly one such piece. False: keys of the parent."""
    query_start: int
    query_length: int
    key_start: int
    key_length: int
    blocks: int = 1
    band: int | None = None
    """Position of the first query less that of the first key, where a window hides some keys; None where it does not."""

    @property
    def causal(self) -> bool:
        """Each block attends to itself up to the query, and nothing else is masked."""
        return self.own and self.band is None

    def queries(self, x_TGXE: Tensor) -> list[Tensor]:
        """Views [batch, X, length, E] of the stream, X the heads of one group: one view, or one per group."""
        return self._views(x_TGXE, self.query_start, self.query_length)

    def keys(self, x_TGXE: Tensor) -> list[Tensor]:
        """The same for the keys of each view of `queries`."""
        return self._views(x_TGXE, self.key_start, self.key_length)

    def _views(self, x_TGXE: Tensor, start: int, length: int) -> list[Tensor]:
        part = x_TGXE[start : start + self.blocks * length]
        if self.blocks == 1:
            return [part.permute(1, 2, 0, 3)]
        return [x.unflatten(0, (self.blocks, length)).transpose(1, 2) for x in part.unbind(1)]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """T tokens of S sequences, and what the attention and the heads must know about them."""

    ids_T: Tensor
    positions_T: Tensor
    predicted_by_N: Tensor
    """Flat index of the position whose output predicts the n-th scored token."""
    targets_N: Tensor
    sequence_of_N: Tensor
    """0..S-1. A scored token shared by several sequences appears once for each."""
    last_S: Tensor
    """Flat index of each sequence's last token."""
    lengths_T: Tensor
    """Length of the sequence each token belongs to (of the first one, where several share it)."""
    num_sequences: int
    max_length: int
    """Longest sequence, cached tokens included."""
    spans: tuple[Span, ...]
    slots_T: Tensor | None = None
    """Cached layouts only: where each new token's key and value belong: block times block size plus place in the block."""
    tables_SN: Tensor | None = None
    """Cached layouts only: the blocks of each sequence, filled up with 0."""
    starts: tuple[int, ...] | None = None
    """Cached layouts only: how many tokens of its table each span finds already there."""

    @property
    def num_tokens(self) -> int:
        return self.ids_T.shape[0]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Kernel calls without a window: spans over themselves (neighbours of one length together), branches over prompts."""
        return _pieces(self.spans, None)

    @cached_property
    def _windowed(self) -> dict[int, tuple[Piece, ...]]:
        return {}

    def pieces_within(self, window: int | None) -> tuple[Piece, ...]:
        """The same for layers whose queries see themselves and the `window - 1` tokens before them."""
        if window is None or window >= self.max_length:
            return self.pieces
        if window not in self._windowed:
            self._windowed[window] = _pieces(self.spans, window)
        return self._windowed[window]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Cached layouts only: the length of each sequence, cached tokens included."""
        assert self.starts is not None
        return tuple(start + span.length for start, span in zip(self.starts, self.spans, strict=True))

    @cached_property
    def step_spans(self) -> list[int]:
        """Cached layouts only: numbers of the spans with one new token, which take their step together."""
        return [number for number, span in enumerate(self.spans) if span.length == 1]

    @cached_property
    def chunk_spans(self) -> list[int]:
        """Cached layouts only: numbers of the longer spans."""
        return [number for number, span in enumerate(self.spans) if span.length > 1]

    @cached_property
    def steps_B(self) -> Tensor:
        """Cached layouts only: flat indices of the tokens of `step_spans`."""
        return torch.tensor([self.spans[number].start for number in self.step_spans], device=self.ids_T.device)

    def seen_in_cache(self, window: int | None, block_size: int) -> tuple[int, Tensor]:
        """Of `step_spans`: the first position of the first block that any query sees, and which positions each query sees
        from there to the end of the last block, bool [B, 1, 1, L]."""
        if window not in self._seen:
            own = [self.ends[number] - 1 for number in self.step_spans]
            low = 0 if window is None else max(0, min(own) - window + 1) // block_size * block_size
            high = -(-(max(own) + 1) // block_size) * block_size
            positions_L = torch.arange(low, high, device=self.ids_T.device)
            own_B1 = self.positions_T[self.steps_B][:, None]
            seen_BL = positions_L <= own_B1
            if window is not None:
                seen_BL &= positions_L > own_B1 - window
            self._seen[window] = low, seen_BL[:, None, None]
        return self._seen[window]

    @cached_property
    def _seen(self) -> dict[int | None, tuple[int, Tensor]]:
        return {}

    def to(self, device: str | torch.device) -> Layout:
        """The same layout with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Layout(**moved)

    @staticmethod
    def packed(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray] | None = None) -> Layout:
        """Every sequence alone, back to back. `scored` marks the targets; without it, all tokens but each first one."""
        if scored is None:
            scored = [np.arange(len(x)) > 0 for x in ids]
        starts = np.concatenate(([0], np.cumsum([len(x) for x in ids]))).astype(np.int64)
        spans = tuple(Span(int(start), len(x), -1) for start, x in zip(starts, ids, strict=False))
        paths = [np.arange(span.start, span.start + span.length) for span in spans]
        return _layout(ids, scored, paths, spans)

    @staticmethod
    def tree(rows: Sequence[Row]) -> Layout:
        """Per row its sequences' common prefix once, then what is left of each; row by row, response by response."""
        ids: list[np.ndarray] = []
        scored: list[np.ndarray] = []
        paths: list[np.ndarray] = []
        spans: list[Span] = []
        end = 0

        def add(length: int, parent: int) -> np.ndarray:
            nonlocal end
            spans.append(Span(end, length, parent))
            end += length
            return np.arange(end - length, end)

        for row in rows:
            ids.extend(row.ids)
            scored.extend(row.scored)
            shared = common_prefix(row.ids)
            trunk, parent = np.arange(0), -1
            if shared:
                trunk, parent = add(shared, -1), len(spans) - 1
            for x in row.ids:
                branch = add(len(x) - shared, parent) if len(x) > shared else np.arange(0)
                paths.append(np.concatenate((trunk, branch)))
        return _layout(ids, scored, paths, tuple(spans))

    @staticmethod
    def cached(
        ids: Sequence[np.ndarray], tables: Sequence[Sequence[int]], starts: Sequence[int],
        block_size: int = BLOCK_SIZE, device: str | torch.device = "cpu",
    ) -> Layout:  # fmt: skip
        """New tokens of sequences in a cache: `ids[i]` follow the `starts[i]` tokens that the blocks `tables[i]` already hold.

        A decoding step has one id per sequence, a prefill all of a prompt, and any mixture is fine. Nothing is scored: take
        the outputs at `last_S`. A block that is written belongs to one sequence alone.
        """
        lengths = np.array([len(x) for x in ids])
        first, ends = np.array(starts), np.cumsum(lengths)
        owner_T = np.repeat(np.arange(len(ids)), lengths)
        positions_T = np.arange(ends[-1]) + (first - (ends - lengths))[owner_T]
        tables_SN = np.zeros((len(ids), max(map(len, tables))), np.int64)
        for row, table, start, length in zip(tables_SN, tables, starts, lengths, strict=True):
            if start + length > len(table) * block_size:
                raise ValueError(f"a sequence of {start + length} tokens does not fit its {len(table)} blocks of {block_size}")
            row[: len(table)] = table
        slots_T = tables_SN[owner_T, positions_T // block_size] * block_size + positions_T % block_size
        tensor = partial(torch.as_tensor, device=device)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        return Layout(
            ids_T=tensor(np.concatenate(ids).astype(np.int64)),
            positions_T=tensor(positions_T),
            predicted_by_N=nothing,
            targets_N=nothing,
            sequence_of_N=nothing,
            last_S=tensor(ends - 1),
            lengths_T=nothing,
            num_sequences=len(ids),
            max_length=int((first + lengths).max()),
            spans=tuple(Span(int(end - length), int(length), -1) for end, length in zip(ends, lengths, strict=True)),
            slots_T=tensor(slots_T),
            tables_SN=tensor(tables_SN),
            starts=tuple(int(start) for start in starts),
        )


def _pieces(spans: Sequence[Span], window: int | None) -> tuple[Piece, ...]:
    own: list[Piece] = []
    over: list[Piece] = []
    for span in spans:
        if window is not None and span.length > window:
            own.extend(_bands(span, window))
        else:
            last = own[-1] if own else None
            end = last.query_start + last.blocks * last.query_length if last else -1
            if last and last.causal and last.query_length == span.length and end == span.start:
                own[-1] = last._replace(blocks=last.blocks + 1)
            else:
                own.append(Piece(True, span.start, span.length, span.start, span.length))
        if span.parent < 0:
            continue
        parent = spans[span.parent]
        if window is None or parent.length + span.length <= window:
            last = over[-1] if over else None
            if (
                last
                and last.band is None
                and (last.key_start, last.query_start + last.query_length) == (parent.start, span.start)
            ):
                over[-1] = last._replace(
                    query_length=last.query_length + span.length
                )  # branches of one parent: one block
            else:
                over.append(Piece(False, span.start, span.length, parent.start, parent.length))
        elif window > 1:  # the first queries of the branch see the end of the prompt
            seen = min(parent.length, window - 1)
            rows = min(span.length, window - 1)
            over.append(Piece(False, span.start, rows, parent.start + parent.length - seen, seen, band=seen))
    return (*own, *over)


def _bands(span: Span, window: int) -> Iterator[Piece]:
    """A span longer than the window over itself, block by block: work and masks grow with the window, not the span."""
    least, most = WINDOW_ROWS
    rows = min(most, max(least, window))
    for first in range(0, span.length, rows):
        length, low = min(rows, span.length - first), max(0, first - window + 1)
        yield Piece(True, span.start + first, length, span.start + low, first + length - low, band=first - low)


def common_prefix(ids: Sequence[np.ndarray]) -> int:
    """How many leading tokens all sequences share. A single sequence shares nothing."""
    if len(ids) < 2:
        return 0
    shared = min(len(x) for x in ids)
    for x in ids[1:]:
        differs = np.flatnonzero(x[:shared] != ids[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared


def tree_tokens(row: Row) -> int:
    """Positions that `Layout.tree` spends on a row."""
    return row.num_tokens - (len(row.ids) - 1) * common_prefix(row.ids)


def _layout(
    ids: Sequence[np.ndarray], scored: Sequence[np.ndarray], paths: Sequence[np.ndarray], spans: tuple[Span, ...]
) -> Layout:
    """`paths[s]` holds the flat index of every token of sequence s."""
    if not len(ids) or any(len(x) == 0 for x in ids):
        raise ValueError("a layout needs at least one sequence, and no sequence may be empty.")
    if any(len(m) != len(x) or m[0] for m, x in zip(scored, ids, strict=True)):
        raise ValueError(
            "`scored` needs one flag per token, and a sequence's first token cannot be scored: nothing predicts it."
        )
    total = max(int(path[-1]) for path in paths) + 1
    ids_T, positions_T, lengths_T = (np.zeros(total, np.int64) for _ in range(3))
    for x, path in zip(
        reversed(ids), reversed(paths), strict=True
    ):  # reversed: the first of several owners writes last
        ids_T[path], positions_T[path], lengths_T[path] = x, np.arange(len(x)), len(x)
    targets = [np.flatnonzero(m) for m in scored]
    tensor = torch.from_numpy
    return Layout(
        ids_T=tensor(ids_T),
        positions_T=tensor(positions_T),
        predicted_by_N=tensor(np.concatenate([path[t - 1] for path, t in zip(paths, targets, strict=True)])),
        targets_N=tensor(np.concatenate([x[t] for x, t in zip(ids, targets, strict=True)]).astype(np.int64)),
        sequence_of_N=tensor(np.repeat(np.arange(len(ids)), [len(t) for t in targets])),
        last_S=tensor(np.array([path[-1] for path in paths])),
        lengths_T=tensor(lengths_T),
        num_sequences=len(ids),
        max_length=max(len(x) for x in ids),
        spans=spans,
    )
