"""`trueline study`: several methods, one budget, one frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from trueline.align.llm_judge import LLMJudge
from trueline.align.verifiers import answers_of
from trueline.align.votes import StoredVotes
from trueline.cli.judge import LLMOptions, judge_named
from trueline.cli.places import BASE, COLUMNS, DATA, JUDGES, MODEL, column_names, model_folder, say_read
from trueline.protocols import Judge
from trueline.records import Comparison, Conversation
from trueline.rows import read_prompts, read_rows
from trueline.store import directory_fingerprint, file_fingerprint, fingerprint
from trueline.study.arms import read_arms
from trueline.study.drawn import unjudged
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
    """Comparisons: prompts with a preferred and another response. With a --judge, prompts alone will do: the model answers them, and the
    judge compares."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD[:OPTION=VALUE,...] ...")]
    """What to compare, with spaces between: every verb that trains a policy on preferences or on prompts (sft, dpo, kto, ppo, rso, ...; a
    wrong name lists them all), and best_of_n:n=8, which trains nothing and lets a reward model choose among 8 answers. Options of the
    method stand behind a colon: dpo:loss_type=ipo,beta=0.1/0.3. Several values are several points of its frontier; the first one is
    what the method is tuned and compared at."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the report and of everything that was trained."""
    judge: Annotated[str, tyro.conf.arg(metavar=JUDGES, help_behavior_hint="(optional)")] = ""
    """Who says how good an answer is: a Python function of prompt and response, a check of what is right, a reward model, a language model
    behind a URL (with --judge_model), or stored votes. One that compares is asked whether an answer beats the start's. Without a judge, a
    reward model learns from comparisons that no method sees."""
    reward: Annotated[str, tyro.conf.arg(metavar="learned|judge|DIR")] = "learned"
    """What chooses among draws and drives methods that draw their own responses: a reward model that learns from the training
    comparisons, the judge itself, or a reward model that you have."""
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
    llm: Annotated[LLMOptions, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=LLMOptions)
    """A language model as judge."""

    def run(self) -> None:
        """Compare, or say what would be compared."""
        console = Console(highlight=False, soft_wrap=True)
        arms = read_arms(self.methods, self.settings.learning_rates)
        columns = column_names(self.columns)
        compared = read_rows(self.data, columns=columns).record is Comparison
        rows = read_rows(self.data, Comparison, columns=columns) if compared else read_prompts(self.data, columns=columns)
        records = list(rows)
        pairs = [record for record in records if isinstance(record, Comparison)]
        prompts = [record for record in records if isinstance(record, Conversation)]
        say_read(rows, console)
        folder = model_folder(self.model)
        if self.dry_run:
            tables = preview(
                folder, pairs or unjudged(prompts), arms, self.budget, self.settings, judged=bool(self.judge), reward=self.reward,
                drawn=not pairs, form=self.form(), bound=self.llm.max_requests,
            )  # fmt: skip
            for title, table in tables:
                console.print(title, markup=False)
                shown = Table(box=None, padding=(0, 2, 0, 0))
                for name in table[0]:
                    shown.add_column(name)
                for row in table:
                    shown.add_row(*map(str, row.values()))
                console.print(shown)
            console.print("dry run: nothing was trained or written; leave out --dry_run to start")
            return
        judge, key = self.judging(prompts)
        report = run_study(
            folder, pairs or prompts, arms, out=self.out, budget=self.budget, settings=self.settings, judge=judge, judge_key=key,
            reward=self.reward,
        )  # fmt: skip
        console.print(f"report: {report}", markup=False)

    def form(self) -> str:
        """How a judge is asked, where that is counted (study.contest.bill)."""
        kind = self.judge.partition(":")[0]
        return self.llm.judge_form if kind in ("http", "https") else "votes" if kind == "votes" else ""

    def judging(self, prompts: Sequence[Conversation]) -> tuple[Judge | None, str]:
        """The judge, and what names it: a changed file or another answer is another judge."""
        if not self.judge:
            return None, ""
        answers = answers_of(prompts)
        llm = replace(self.llm, judge_cache=self.llm.judge_cache or self.out / "verdicts.sqlite")
        judge = judge_named(self.judge, self.settings.max_length, self.settings.device, answers=answers, llm=llm)
        if isinstance(judge, LLMJudge | StoredVotes):
            return judge, f"{judge.name.replace(' ', '_')} {judge.fingerprint[:16]}"
        known = [answers[key] for key in sorted(answers)]
        names = [Path(part.rpartition("=")[0] or part) for part in self.judge.split(",")]
        files = [directory_fingerprint(path) for path in names if path.is_dir()]
        path, _, function = self.judge.rpartition(":")
        files += [file_fingerprint(path)] if Path(path).is_file() else []
        said = f"{Path(path).name}:{function}" if path else Path(self.judge).name
        return judge, f"{said} {fingerprint([known, files])[:16]}"
