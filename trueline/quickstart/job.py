"""The quickstart from first line to last: what `trueline quickstart` prints and writes.

    collect -> plan -> (base) -> SFT -> preferences -> reward model -> methods compared -> measure -> report

Left out: the stages themselves (stages, methods), the measuring (measure), the page (report).
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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trueline.models.files import load_model
from trueline.quickstart.base_model import base_model_dir
from trueline.quickstart.measure import Bench, measure
from trueline.quickstart.methods import BEST, COSTS, ENTRANTS, answers, compare_methods, study_of
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
    held_out,
    prompt_of,
    reward_model,
    supervise,
)
from trueline.store import write_atomic
from trueline.study.verdict import START
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.tokens.encode import encode_conversation, encode_prompt

CURVES = {"sft": "loss", "reward": "accuracy", "dpo": "rewards/margins", "ppo": "reward", "online-dpo": "reward"}


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
    sft, reward, preferences = (out / name for name in ("sft", "reward", "preferences"))
    with clock.stage(
        "SFT", f"{plan.sft_steps:,} steps of {ROWS_PER_STEP['sft']} functions and what people wrote under them"
    ):
        supervise(base, data, tokenizer, plan, sft)
    with clock.stage(
        "Preferences",
        f"{CANDIDATES} summaries sampled for each of {plan.preference_prompts:,} functions, ranked by a noisy annotator",
    ):
        if not (preferences / "report.jsonl").exists():  # written last
            console.print(compare(sft, data, tokenizer, plan, preferences), highlight=False)
    with clock.stage("Reward model", f"{plan.reward_steps:,} steps of {ROWS_PER_STEP['reward']} rankings"):
        reward_model(sft, preferences, plan, reward)
    titles = ", ".join(entrant.title for entrant in ENTRANTS)
    with clock.stage("Methods", f"{titles}: {plan.method_updates:,} updates of {ROWS_PER_STEP['methods']} prompts each, compared"):
        compare_methods(sft, reward, preferences, data.judge, plan, out, console)
    held = held_out(data, tokenizer, plan)
    with clock.stage("Evaluation", f"greedy summaries of {len(held):,} functions of packages that no model has seen"):
        found = out / "measured.json"
        if not found.exists():
            bench = Bench(functions=tuple(held), tokenizer=tokenizer, judge=data.judge, seed=seed)
            best = {prompt: said[BEST][0] for prompt, said in answers(out).items()}
            trained = {entrant.folder: out / entrant.folder for entrant in ENTRANTS}
            write_atomic(found, json.dumps(measure(bench, sft, trained, best), indent=1))
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
            minutes, seed, from_scratch, used, load_model(base), tokenizer, [row for row in encoded if row], prompts, COSTS
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
        f"{plan.sft_steps:,} SFT and {plan.reward_steps:,} reward steps, {plan.method_updates:,} updates of every method compared "
        f"(kept in plan.json)"
    )
    short = [
        s
        for s, n in (("sft", plan.sft_steps), ("reward", plan.reward_steps), ("methods", plan.method_updates))
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
    study, seconds = study_of(out), study_seconds(out, clock)
    chosen = next((one.folder for one in ENTRANTS if one.title == study["verdict"]["choose"]), "dpo")
    return {
        "seed": plan.seed,
        "notes": [
            f"{plan.minutes:g} minutes planned"
            + (", tokenizer and base model from scratch" if plan.from_scratch else "")
        ],
        "study": study,
        "study_seconds": seconds,
        "stages": stages(clock, seconds),
        "curves": {name: curve(out / name / "metrics.jsonl", metric) for name, metric in CURVES.items()},
        "settings": asdict(plan)
        | {
            "methods": "; ".join(entrant.method for entrant in ENTRANTS),
            "held-out packages": ", ".join(TEST_PACKAGES),
            "functions harvested": len(data.found.functions),
            "packages": ", ".join(packages),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
            "versions": f"Python {platform.python_version()}, torch {version('torch')}",
        },
        "next_commands": [
            f"trueline generate 'name: read config file' --chat --temperature 0 --model {out}/{chosen}",
            "trueline data inspect YOUR_PREFERENCES.jsonl",
            "trueline study --model YOUR_MODEL --data YOUR_PREFERENCES.jsonl --methods dpo ppo best_of_n:n=8 --out runs/study --dry_run",
        ],
    }


def study_seconds(out: Path, clock: Clock) -> dict[str, dict[str, float]]:
    """What every method took. The reward model was trained before the study; it is charged to all that use it."""
    found: dict[str, dict[str, float]] = json.loads((out / "study" / "seconds.json").read_text(encoding="utf-8"))
    (reward,) = (float(stage["seconds"]) for stage in clock.stages if stage["name"] == "Reward model")
    users = {arm["name"] for arm in study_of(out)["arms"] if arm["cost"]["reward_model"]}
    return {name: took | {"reward_model": reward if name in users else 0.0} for name, took in found.items()}


def stages(clock: Clock, seconds: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The stages with the methods one by one."""
    rows: list[dict[str, Any]] = []
    for stage in clock.stages:
        if stage["name"] != "Methods":
            rows.append(dict(stage))
            continue
        trained = [{"name": one.title, "detail": one.method, "seconds": seconds[one.title]["policy"]} for one in ENTRANTS]
        rest = float(stage["seconds"]) - sum(seconds[one.title]["policy"] for one in ENTRANTS)
        rows += [*trained, {"name": "Comparison", "detail": "sampled answers of every model, reward, KL", "seconds": max(0.0, rest)}]
    return rows


def curve(path: Path, metric: str) -> dict[str, Any]:
    """Steps and values of one logged metric."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if metric in row]
    return {"metric": metric, "steps": [row["step"] for row in rows], "values": [row[metric] for row in rows]}


def conclude(results: dict[str, Any], out: Path, console: Console) -> None:
    """The tables, which method to choose, and where to go from here."""
    console.print(greedy_table(results))
    gain = results["models"]["dpo"]["gain_over_sft"]
    console.print(
        f"DPO over SFT: {gain['mean']:+.2f} judge points (95% interval {gain['interval'][0]:+.2f} to {gain['interval'][1]:+.2f})"
    )
    console.print(methods_table(results))
    verdict = results["study"]["verdict"]
    console.print(f"[bold]{verdict['headline']}[/] {' '.join(verdict['because'])}", highlight=False)
    console.print(f"\nReport: [bold]{out / 'report.html'}[/]\nNext, on your own data:")
    for command in results["next_commands"]:
        console.print(f"  {command}", soft_wrap=True)


def greedy_table(results: dict[str, Any]) -> Table:
    """Every model as one would deploy it."""
    title = f"{results['num_test']:,} held-out functions, greedy summaries (best of n: the chosen one)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "score", "beats SFT", "and human", "name words", "other's", "words"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, m in results["models"].items():
        low, high = m["judge"]["interval"]
        wins = [
            f"{100 * m[key]['mean']:.0f}%" if key in m else "" for key in ("wins_against_sft", "wins_against_human")
        ]
        shares = [f"{100 * m[key]:.0f}%" for key in ("grounding", "grounding_other")]
        title = TITLES[name].removesuffix(" docstring")
        table.add_row(title, f"{m['judge']['mean']:.2f} ±{(high - low) / 2:.2f}", *wins, *shares, f"{m['words']:.1f}")
    return table


def methods_table(results: dict[str, Any]) -> Table:
    """The study: what each method gives, and what it costs."""
    study, seconds = results["study"], results["study_seconds"]
    title = f"the same functions, summaries sampled at temperature {study['settings']['temperature']:g} ({START}: SFT)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "score", f"over {START}", "beats it", "KL", "train, s", "draws"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for arm, wins in zip(study["arms"], study["matrix"], strict=True):
        reward, gain, kl = (arm["main"][name] for name in ("reward", "gain", "kl"))
        took = sum(seconds.get(arm["name"], {}).get(part, 0.0) for part in ("policy", "reward_model"))
        table.add_row(
            arm["name"], f"{reward['estimate']:.2f} ±{(reward['high'] - reward['low']) / 2:.2f}",
            "" if wins[0] is None else f"{gain['estimate']:+.2f} ±{(gain['high'] - gain['low']) / 2:.2f}",
            "" if wins[0] is None else f"{100 * wins[0]['estimate']:.0f}%", f"{kl['estimate']:.2f}",
            f"{took:.0f}" if took else "", str(arm["cost"]["per_answer"]["draws"]),
        )  # fmt: skip
    return table
