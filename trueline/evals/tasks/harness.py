"""Names of tasks -> lm-evaluation-harness -> results with their standard errors.

    tasks = load(("local_piqa",), include=())         found = measure(HarnessModel(parts), tasks, ...)
    found.results -> Result(task, metric, filter, value, error, n)      found.detail -> what goes into a JSON file

The task files of this folder need no index of lm_eval's own thousands, which takes seconds to read: it is read only for other names.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from trueline.evals.tasks.model import HarnessModel

FOLDER = Path(__file__).parent
"""The task files that come with Trueline."""
OURS = "local_"
"""How their names begin."""


@dataclass(frozen=True)
class Result:
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    """How answers were read out of responses; "none" where nothing was."""
    value: float
    error: float | None
    """Standard error; None where the task's metric has none."""
    n: int
    """Documents."""
    shots: int
    """Solved examples before each question."""


@dataclass(frozen=True)
class Found:
    """What the harness says."""

    results: tuple[Result, ...]
    detail: dict[str, Any]
    """Its results, versions of tasks, settings."""
    samples: dict[str, list[dict[str, Any]]]
    """Task -> documents with their prompts, answers and scores."""


def manager(names: Sequence[str], include: Sequence[Path], say: Callable[[str], object] = lambda text: None) -> TaskManager:
    """The task files that hold these names (also *, ? and tags); a name that is nowhere is refused. `say` is told of a long wait."""
    from lm_eval.tasks import TaskManager

    for path in include:
        if not path.is_dir():
            raise ValueError(f"--include_path {path} is no folder: name one that holds task files (.yaml)")
    paths = [str(path) for path in (FOLDER, *include)]
    found = TaskManager(include_path=paths, include_defaults=False)
    if all(found.match_tasks([name]) for name in names):
        return found
    wider = found
    if not any(name.startswith(OURS) for name in names):
        say("reading the 14,000 task files of lm-evaluation-harness, which takes about 10 s")
        wider = TaskManager(include_path=paths)
    for name in names:
        if not wider.match_tasks([name]):
            near = difflib.get_close_matches(name, wider.all_tasks, 1)
            ours = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
            raise ValueError(
                f"there is no task {name!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"those that come with Trueline are {ours}"
            )
    return wider


def measure(
    model: HarnessModel, names: Sequence[str], tasks: TaskManager, *,
    limit: int | None = None, shots: int | None = None, chat: bool = False, system: str = "",
) -> Found:  # fmt: skip
    """Ask, score, summarise. `limit` documents of each task; `shots` solved examples; `chat`: through the chat template."""
    from lm_eval import evaluate

    random.seed(0)  # metrics are resampled for errors that have no formula
    np.random.seed(1234)
    loaded = tasks.load(tasks.match_tasks(list(names)))
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):  # a task that says 0 shows its examples itself, or has none
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=1234)  # lm_eval's own
    said = evaluate(
        model, loaded, limit=limit, apply_chat_template=chat, fewshot_as_multiturn=chat, system_instruction=system or None,
        log_samples=True, bootstrap_iters=1000,
    )  # fmt: skip
    assert said is not None, "one process asks"
    results = tuple(
        Result(task, metric, how, float(value),
               _error(values.get(f"{metric}_stderr,{how}"), metric, float(value), said["samples"].get(task, ())),
               said["n-samples"].get(task, {}).get("effective", 0), int(said["n-shot"].get(task) or 0))
        for task, values in said["results"].items()
        for key, value in values.items()
        for metric, _, how in [key.partition(",")]
        if how and not metric.endswith("_stderr")
    )  # fmt: skip
    kept = (
        "results",
        "groups",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
    )
    detail = {"lm_eval_version": version("lm_eval"), **{key: said[key] for key in kept if key in said}}
    return Found(results, detail, said["samples"])


def plain(value: Any) -> str:
    """For json.dumps: what JSON has no form for, functions by their name."""
    return value.__qualname__ if isinstance(value, FunctionType | type) else str(value)


def _error(said: Any, metric: str, value: float, samples: Sequence[Mapping[str, Any]]) -> float | None:
    """The standard error that lm_eval says. It has none ("N/A") for likelihoods per byte or word: those are ratios of two sums over
    documents, whose error is that of the residuals (the ratio estimator; Cochran, Sampling Techniques, 6.4)."""
    if isinstance(said, int | float) and math.isfinite(said):
        return float(said)
    if metric not in ("bits_per_byte", "byte_perplexity", "word_perplexity") or len(samples) < 2:
        return None
    logps_N, sizes_N = np.array([sample[metric] for sample in samples], dtype=float).T
    residuals_N = logps_N - logps_N.sum() / sizes_N.sum() * sizes_N
    error = float(math.sqrt(len(samples) / (len(samples) - 1) * (residuals_N**2).sum()) / sizes_N.sum())
    return error / math.log(2) if metric == "bits_per_byte" else error * value
