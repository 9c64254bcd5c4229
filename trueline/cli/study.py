"""`trueline study`: several methods, one budget, one frontier."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from trueline.cli.judge import judge_named
from trueline.cli.places import BASE, COLUMNS, DATA, MODEL, column_names, model_folder, say_read
from trueline.protocols import Judge
from trueline.records import Comparison
from trueline.rows import read_rows
from trueline.store import directory_fingerprint, file_fingerprint
from trueline.study.arms import read_arms
from trueline.study.job import run_study
from trueline.study.preview import preview
from trueline.study.settings import Budget, Settings


@dataclass(frozen=True, kw_only=True)
class Study:
    """Compare methods on one model and one preference file, with one budget: reward against KL for each, who wins against whom, what
    each costs, and which to choose, in report.html. Every method is tuned as often as the others, on other prompts than the report's.
    The same command goes on where it was stopped."""

    model: Annotated[str, MODEL] = BASE
    """Start of every policy, and the reference: a folder, a hub id, or "base". A model that has seen SFT on such prompts does best."""
    data: Annotated[tuple[str, ...], DATA]
    """Comparisons: prompts with a preferred and another response."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD[:OPTION=VALUE,...] ...")]
    """Methods by their verbs, with options of their objectives: sft dpo dpo:loss_type=ipo,beta=0.1/0.3 best_of_n:n=8. Several values
    of an option are several points of its frontier; the first one is what the method is tuned and compared at."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the report and of everything that was trained."""
    judge: Annotated[str, tyro.conf.arg(metavar="FILE.py:FUNCTION|DIR", help_behavior_hint="(optional)")] = ""
    """Who gives the scores that count: a Python function of prompt and response, or a reward model. Without one, a reward model learns
    from comparisons that no method sees."""
    reward: Literal["learned", "judge"] = "learned"
    """What chooses among draws and drives methods that draw their own responses: a reward model that learns from the training
    comparisons, or the judge itself."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question chosen=better."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml", help_behavior_hint="(optional)")] = None
    """A YAML file that sets any of these options; flags win over it."""
    dry_run: bool = False
    """Say what would be trained and measured, and what that costs, and do nothing."""
    budget: Annotated[Budget, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Budget)
    """Equal for every method."""
    settings: Annotated[Settings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Settings)
    """Training and measuring."""

    def run(self) -> None:
        """Compare, or say what would be compared."""
        console = Console(highlight=False, soft_wrap=True)
        arms = read_arms(self.methods, self.settings.learning_rates)
        rows = read_rows(self.data, Comparison, columns=column_names(self.columns))
        pairs = [record for record in rows if isinstance(record, Comparison)]
        say_read(rows, console)
        folder = model_folder(self.model)
        if self.dry_run:
            for title, table in preview(folder, pairs, arms, self.budget, self.settings, judged=bool(self.judge), reward=self.reward):
                console.print(title, markup=False)
                shown = Table(box=None, padding=(0, 2, 0, 0))
                for name in table[0]:
                    shown.add_column(name)
                for row in table:
                    shown.add_row(*map(str, row.values()))
                console.print(shown)
            console.print("dry run: nothing was trained or written; leave out --dry_run to start")
            return
        judge, key = self.judging()
        report = run_study(
            folder, pairs, arms, out=self.out, budget=self.budget, settings=self.settings, judge=judge, judge_key=key,
            reward=self.reward,
        )  # fmt: skip
        console.print(f"report: {report}", markup=False)

    def judging(self) -> tuple[Judge | None, str]:
        """The judge, and what names it: a changed file is another judge."""
        if not self.judge:
            return None, ""
        judge = judge_named(self.judge, self.settings.max_length, self.settings.device)
        path = Path(self.judge.rpartition(":")[0])
        if path.is_file():
            return judge, f"{path.name}:{self.judge.rpartition(':')[2]} {file_fingerprint(path)[:16]}"
        folder = Path(self.judge)
        return judge, f"{folder.name} {directory_fingerprint(folder)[:16]}" if folder.is_dir() else self.judge
