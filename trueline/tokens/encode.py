"""Records to rows of ids."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueline.records import Document, Row
from trueline.tokens.tokenizer import Tokenizer


@dataclass
class EncodeStats:
    """What became of the records: nothing is cut or dropped without being counted here."""

    rows: int = 0
    tokens: int = 0
    """Tokens kept."""
    scored_tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records."""

    def add(self, row: Row) -> None:
        self.rows += 1
        self.tokens += row.num_tokens
        self.scored_tokens += sum(int(s.sum()) for s in row.scored)

    def cut(self, tokens: int) -> None:
        if tokens > 0:
            self.cut_rows += 1
            self.cut_tokens += tokens


def row_key(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray]) -> str:
    """Stable name of a row: sha256 of its ids and scored flags."""
    digest = hashlib.sha256()
    for ids_L, scored_L in zip(ids, scored, strict=True):
        digest.update(len(ids_L).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids_L, dtype="<i4").tobytes())
        digest.update(np.ascontiguousarray(scored_L, dtype="u1").tobytes())
    return digest.hexdigest()


def document_ids(text: str, tok: Tokenizer) -> np.ndarray:
    """Ids of a document: BOS where the tokenizer adds one, the text, EOS."""
    return _framed(np.array(tok.encode(text), dtype=np.int32), tok)


def documents_ids(texts: Sequence[str], tok: Tokenizer) -> list[np.ndarray]:
    """The same for many documents, over threads."""
    return [_framed(ids, tok) for ids in tok.encode_batch(texts)]


def _framed(ids: np.ndarray, tok: Tokenizer) -> np.ndarray:
    if tok.eos_id is None:
        raise ValueError("The tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json.")
    head = [tok.bos_id] if tok.adds_bos and tok.bos_id is not None else []
    return np.concatenate([np.array(head, dtype=np.int32), ids, np.array([tok.eos_id], dtype=np.int32)])


def encode_document(doc: Document, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """All tokens scored; EOS appended. A long document becomes several windows that overlap by one token, so that every token
    but the first is a target exactly once and nothing is lost."""
    return window_rows([document_ids(doc.text, tok)], max_length, stats)


def window_rows(documents: Iterable[np.ndarray], max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """Rows of at most `max_length` tokens from the ids of documents, each cut on its own."""
    if max_length < 2:
        raise ValueError(f"max_length {max_length} is too short: use at least 2.")
    rows = []
    for ids in documents:
        for start in range(0, max(1, len(ids) - 1), max_length - 1):
            piece = ids[start : start + max_length].astype(np.int32)
            if len(piece) < 2:
                if stats is not None:
                    stats.dropped["empty document"] += 1
                continue
            scored = np.ones(len(piece), dtype=bool)
            scored[0] = False
            row = Row(ids=(piece,), scored=(scored,), key=row_key((piece,), (scored,)))
            rows.append(row)
            if stats is not None:
                stats.add(row)
    return rows
