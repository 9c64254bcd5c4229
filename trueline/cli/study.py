"""`trueline study`: several methods, one budget, one frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from trueline.align.verifiers import answers_of
from trueline.cli.judge import LLMOptions, judge_named
from trueline.cli.places import BASE, COLUMNS, DATA, JUDGES, MODEL, column_names, model_folder, say_read
from trueline.protocols import Judge, KnownJudge
from trueline.records import Comparison, Conversation
from trueline.rows import read_prompts, read_rows
from trueline.store import fingerprint
from trueline.study.arms import read_arms
from trueline.study.contest import shown_as
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
    comparisons, the judge itself, or a reward model that you have. Of one that you have, the report's calibration and learned-against-true
    figures hold only for prompts that it has not learned from."""
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
        """The judge, and what names it: a changed file, another answer, weight or length that is read is another judge."""
        if not self.judge:
            return None, ""
        answers = answers_of(prompts)
        llm = replace(self.llm, judge_cache=self.llm.judge_cache or self.out / "verdicts.sqlite")
        judge = judge_named(self.judge, self.settings.max_length, self.settings.device, answers=answers, llm=llm)
        assert isinstance(judge, KnownJudge), "every judge that has a name on the command line says what it judges by"
        said = shown_as(judge)
        return judge, f"{said.replace(' ', '_')} {fingerprint([said, judge.fingerprint])[:16]}"
