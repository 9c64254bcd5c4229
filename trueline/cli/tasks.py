"""`trueline eval MODEL --tasks NAME ...`: lm-evaluation-harness asks our engine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trueline.cli.places import model_folder
from trueline.cli.precision import Bits, Precision
from trueline.run import Bar
from trueline.store import local_folder, write_atomic

if TYPE_CHECKING:
    from trueline.evals.tasks.harness import Found
    from trueline.evals.tasks.model import HarnessModel

MAX_BATCH = 32
"""Responses drawn at the same time."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What lm-evaluation-harness asks, and how."""

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(optional)")] = ()
    """Tasks of lm-evaluation-harness, also tags and patterns such as local_*. Those named local_... read the folder that the
    variable TRUELINE_DATA names; most others fetch their data from the hub. Needs: pip install trueline[eval]."""
    include_path: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR ...", help_behavior_hint="(optional)")] = ()
    """Folders with task files of your own. A task file may name Python functions, which are run."""
    num_fewshot: int = -1
    """Solved examples before each question; -1 is what the task says."""
    chat: bool = False
    """Put the questions through the model's chat template."""
    system: str = ""
    """With --chat: a system message."""
    precision: Bits = field(default_factory=Precision)
    """How many bits to compute with."""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl", help_behavior_hint="(optional)")] = None
    """Also write each question, with the model's answer and its score, to this file."""


def run_tasks(asked: Tasks, model: str, *, limit: int, out: Path | None, device: str) -> None:
    """Print a table, write what was asked for. `limit` documents of each task; 0 is all."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("--tasks needs lm-evaluation-harness, which is not installed: pip install 'trueline[eval]'")
    if model.startswith(("http://", "https://")):
        raise ValueError(f"{model} is an address: lm_eval --model local-completions asks it, with the same task files "
                         f"(--include_path {Path(__file__).parents[1] / 'evals' / 'tasks'})")  # fmt: skip
    from trueline.evals.tasks.harness import manager, measure, plain

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    errors = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    tasks = manager(asked.tasks, asked.include_path, errors.print)  # a wrong name is said before the model loads
    found_model = harness_model(model, device, errors, asked.precision)
    shots = None if asked.num_fewshot < 0 else asked.num_fewshot
    with quiet():
        found = measure(
            found_model, asked.tasks, tasks, limit=limit or None, shots=shots,
            chat=asked.chat, system=asked.system,
        )  # fmt: skip
    console.print(table(found))
    if found_model.cut:
        console.print(
            f"      [yellow]{found_model.cut:,} contexts cut at their left end[/yellow]: the model sees {found_model.max_length:,} tokens"
        )
    if limit:
        console.print(f"      [yellow]a trial[/yellow]: the first {limit:,} documents of each task")
    if out is not None:
        detail = {"model": model, "results": [asdict(result) for result in found.results], "lm_eval": found.detail}
        write_atomic(out, json.dumps(detail, indent=2, default=plain, ensure_ascii=False) + "\n")
    if asked.samples is not None:
        lines = [
            json.dumps({"task": task, **row}, default=plain, ensure_ascii=False)
            for task, rows in found.samples.items()
            for row in rows
        ]
        write_atomic(asked.samples, "".join(line + "\n" for line in lines))
        console.print(f"      {len(lines):,} documents in {escape(str(asked.samples))}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm_eval's own bars and remarks are kept back, its errors are not: ours say what goes on."""
    logger, handler = logging.getLogger("lm_eval"), logging.StreamHandler(sys.stderr)
    logger.setLevel(logging.ERROR)
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.removeHandler(handler)


def harness_model(model: str, device: str, errors: Console, precision: Precision = Precision()) -> HarnessModel:  # noqa: B008
    """Our engine behind lm_eval's door."""
    from trueline.evals.tasks.model import HarnessModel, Parts
    from trueline.models.files import load_model, read_config
    from trueline.models.scorer import PolicyScorer
    from trueline.serve.engine import Engine
    from trueline.tokens import load_tokenizer

    folder = model_folder(model)
    if read_config(local_folder(folder, "config"))[1]:
        raise ValueError(
            f"{model} is a reward model: tasks ask language models; measure it with --data and comparisons"
        )
    tokenizer = load_tokenizer(folder)
    decoder = precision.apply(load_model(folder, device=device))
    engine = Engine(decoder, tokenizer, MAX_BATCH, cache_dtype=precision.cache_dtype)
    bars: dict[str, Bar] = {}

    def progress(kind: str, done: int, total: int) -> None:
        if kind not in bars:
            bars[kind] = Bar(total, kind, console=errors).__enter__()
        bars[kind].update(done)
        if done >= total:
            bars.pop(kind).__exit__()

    learned = decoder.config.learned_positions  # they end: nothing can stand behind a full context
    return HarnessModel(Parts(
        tokenizer=tokenizer, score=PolicyScorer(decoder).token_scores, sample=engine.sample, text=engine.text,
        context=decoder.config.max_length - learned, progress=progress,
    ))  # fmt: skip


def table(found: Found) -> Table:
    """One line per metric."""
    drawn = Table(box=None, header_style="bold")
    for name in ("task", "shots", "documents", "metric", "value", "standard error"):
        drawn.add_column(name, no_wrap=True)
    before = ""
    for one in found.results:
        filtered = "" if one.filter == "none" else f" ({one.filter})"
        error = "" if one.error is None else f"± {one.error:.4f}"
        shown = ("", "", "") if one.task == before else (one.task, str(one.shots), f"{one.n:,}" if one.n else "")
        drawn.add_row(*map(escape, (*shown, one.metric + filtered, f"{one.value:.4f}", error)))
        before = one.task
    return drawn
