"""The quickstart from first line to last: what `trueline quickstart` prints and writes.

    collect -> plan -> (base) -> SFT -> preferences -> reward model -> DPO -> measure -> report

Left out: the stages themselves (stages), the measuring (measure), the page (report).
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from trueline.models.files import load_model
from trueline.quickstart.base_model import base_model_dir
from trueline.quickstart.measure import BEST_OF, Bench, measure
from trueline.quickstart.plan import CANDIDATES, LEAST, ROWS_PER_STEP, Plan, load_or_make, make_plan
from trueline.quickstart.report import TITLES, write_report
from trueline.quickstart.scratch import train_base
from trueline.quickstart.splits import TEST_PACKAGES
from trueline.quickstart.stages import (
    Clock,
    Data,
    collect,
    compare,
    conversations,
    prefer,
    prompt_of,
    reward_model,
    supervise,
)
from trueline.store import write_atomic
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.tokens.encode import encode_conversation, encode_prompt

CURVES = {"sft": "loss", "reward": "accuracy", "dpo": "rewards/margins"}


def run(minutes: float, out: Path, from_scratch: bool, seed: int) -> Path:
    """All stages; returns the report's path."""
    if minutes <= 0:
        raise ValueError(f"--minutes {minutes} is too short: give at least 1")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "plan.json").exists():
        load_or_make(out / "plan.json", minutes, seed, from_scratch, None)  # another command is refused before any work
    console = Console()
    clock, begun = Clock(out, console), time.perf_counter()
    console.print(f"[bold]Trueline quickstart[/]: about {minutes:g} minutes on this machine, everything in {out}/")
    with clock.stage("Harvest", "documented functions of the standard library and Trueline's dependencies"):
        data = collect(out / "harvest", seed)
    say_data(data, console)
    base, tokenizer = start_model(data, minutes, out, from_scratch, seed)
    plan = settle(minutes, seed, from_scratch, time.perf_counter() - begun, data, base, tokenizer, out)
    say_plan(plan, console)
    if from_scratch:
        with clock.stage("Base model", f"from scratch, {plan.base_steps:,} steps"):
            base = train_base(data.sft, out / "base", plan.base_steps, seed)
        tokenizer = load_tokenizer(base)
    sft, reward, dpo = (out / name for name in ("sft", "reward", "dpo"))
    rankings, pairs = out / "rankings.jsonl", out / "pairs.jsonl"
    with clock.stage(
        "SFT", f"{plan.sft_steps:,} steps of {ROWS_PER_STEP['sft']} functions and what people wrote under them"
    ):
        supervise(base, data, tokenizer, plan, sft)
    with clock.stage(
        "Preferences",
        f"{CANDIDATES} summaries sampled for each of {plan.preference_prompts:,} functions, ranked by a noisy annotator",
    ):
        if not rankings.exists():
            console.print(compare(sft, data, tokenizer, plan, rankings, pairs), highlight=False)
    with clock.stage("Reward model", f"{plan.reward_steps:,} steps of {ROWS_PER_STEP['reward']} rankings"):
        reward_model(sft, rankings, plan, reward)
    with clock.stage("DPO", f"{plan.dpo_steps:,} steps of {ROWS_PER_STEP['dpo']} pairs"):
        prefer(sft, pairs, plan, dpo)
    with clock.stage(
        "Evaluation", f"{plan.test_prompts:,} functions of packages that no model has seen, best of {BEST_OF}"
    ):
        found = out / "measured.json"
        if not found.exists():
            bench = Bench(functions=data.test[: plan.test_prompts], tokenizer=tokenizer, judge=data.judge, seed=seed)
            write_atomic(found, json.dumps(measure(bench, sft, reward, dpo), indent=1))
    results = json.loads(found.read_text(encoding="utf-8")) | context(data, plan, clock, out)
    write_atomic(out / "results.json", json.dumps(results, indent=1))
    write_report(results, out / "report.html")
    conclude(results, out, console)
    return out / "report.html"


def start_model(data: Data, minutes: float, out: Path, from_scratch: bool, seed: int) -> tuple[Path, Tokenizer]:
    """The shipped base model; from scratch, a tokenizer and an untrained model to probe the machine with."""
    if not from_scratch:
        return base_model_dir(), load_tokenizer(base_model_dir())
    probe = out / "probe"
    if not (probe / "config.json").exists():
        train_base(data.sft[:2000], probe, 1, seed)
    return probe, load_tokenizer(probe)


def settle(
    minutes: float, seed: int, from_scratch: bool, used: float, data: Data, base: Path, tokenizer: Tokenizer, out: Path
) -> Plan:
    """The kept plan, or one made from a probe of this machine."""
    path, made = out / "plan.json", None
    if not path.exists():
        encoded = [encode_conversation(c, tokenizer, 512) for c in conversations(data.sft[:64], tokenizer)]
        prompts = [encode_prompt(prompt_of(f, tokenizer), tokenizer) for f in data.preference[:48]]
        made = make_plan(
            minutes, seed, from_scratch, used, load_model(base), tokenizer, [row for row in encoded if row], prompts
        )
    return load_or_make(path, minutes, seed, from_scratch, made)


def say_data(data: Data, console: Console) -> None:
    console.print(
        f"{len(data.found.functions):,} documented functions of {len(data.found.packages)} packages; "
        f"{len(data.test):,} of {', '.join(TEST_PACKAGES)} are held out, {sum(data.removed.values()):,} near-duplicates of them dropped; "
        f"{len(data.sft):,} for SFT, {len(data.preference):,} for preferences"
    )


def say_plan(plan: Plan, console: Console) -> None:
    """Print how fast this machine is, and the steps that follow from it."""
    console.print(
        f"this machine trains {plan.training_tokens_per_second:,.0f} tokens/s and samples {plan.responses_per_second:,.0f} summaries/s: "
        f"{plan.sft_steps:,} SFT, {plan.reward_steps:,} reward and {plan.dpo_steps:,} DPO steps (kept in plan.json)"
    )
    short = [
        s
        for s, n in (("sft", plan.sft_steps), ("reward", plan.reward_steps), ("dpo", plan.dpo_steps))
        if n <= 2 * LEAST[s]
    ]
    if short:
        console.print(
            f"[yellow]{plan.minutes:g} minutes are little: {', '.join(short)} will hardly learn; expect no clear winner[/]"
        )
    if plan.from_scratch:
        console.print(
            "[yellow]from scratch: expect English about the wrong function at best; the shipped base model has read far more[/]"
        )


def context(data: Data, plan: Plan, clock: Clock, out: Path) -> dict[str, Any]:
    """What the report says beside the measurements."""
    packages = [f"{p['name']} {p['version']}" for p in data.found.packages if p["functions"]]
    return {
        "seed": plan.seed,
        "notes": [
            f"{plan.minutes:g} minutes planned"
            + (", tokenizer and base model from scratch" if plan.from_scratch else "")
        ],
        "stages": clock.stages,
        "curves": {name: curve(out / name / "metrics.jsonl", metric) for name, metric in CURVES.items()},
        "settings": asdict(plan)
        | {
            "held-out packages": ", ".join(TEST_PACKAGES),
            "functions harvested": len(data.found.functions),
            "packages": ", ".join(packages),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
            "versions": f"Python {platform.python_version()}, torch {version('torch')}",
        },
        "next_commands": [
            f"trueline generate 'name: read config file' --chat --temperature 0 --model {out}/dpo",
            "trueline data inspect YOUR_PREFERENCES.jsonl",
            "trueline dpo --model YOUR_MODEL --data YOUR_PREFERENCES.jsonl --out runs/dpo --dry_run",
        ],
    }


def curve(path: Path, metric: str) -> dict[str, Any]:
    """Steps and values of one logged metric."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if metric in row]
    return {"metric": metric, "steps": [row["step"] for row in rows], "values": [row[metric] for row in rows]}


def conclude(results: dict[str, Any], out: Path, console: Console) -> None:
    """The table, and where to go from here."""
    table = Table(title=f"{results['num_test']:,} held-out functions")
    for heading in (
        "",
        "judge score",
        "wins against SFT",
        "wins against human",
        "KL from SFT",
        "name words",
        "other's",
        "words",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, m in results["models"].items():
        low, high = m["judge"]["interval"]
        wins = [
            f"{100 * m[key]['mean']:.0f}%" if key in m else "" for key in ("wins_against_sft", "wins_against_human")
        ]
        kl = f"{m['kl']['mean']:.2f}" if "kl" in m else ""
        table.add_row(TITLES[name], f"{m['judge']['mean']:.2f} ± {(high - low) / 2:.2f}", *wins, kl, f"{100 * m['grounding']:.0f}%",
                      f"{100 * m['grounding_other']:.0f}%", f"{m['words']:.1f}")  # fmt: skip
    console.print(table)
    gain = results["models"]["dpo"]["gain_over_sft"]
    console.print(
        f"DPO over SFT: {gain['mean']:+.2f} judge points (95% interval {gain['interval'][0]:+.2f} to {gain['interval'][1]:+.2f})"
    )
    console.print(f"\nReport: [bold]{out / 'report.html'}[/]\nNext, on your own data:")
    for command in results["next_commands"]:
        console.print(f"  {command}", soft_wrap=True)
