"""How well `trueline plan` predicts: the peak memory of ten varied runs, each really run in a process of its own.

Claim: the prediction is within 10 % of the highest resident set of the run.

    python bench/memory.py [--threads 1] [--only dpo] [--quick]      minutes; --quick takes two of the runs

Runs: the bench's models S and M (training.py), all verbs, several batches, accumulation, checkpointing, adapters.
Measured: the highest resident set of the process `trueline VERB --config ...` over two steps, as the system reports it, and
its seconds from the first word about the run to the last step. A memory peak does not depend on what
else the machine does; seconds do, so their column only means something on a machine that is idle.
Left out: GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml
from training import prepared

RUNS: dict[str, dict[str, Any]] = {
    "sft S, 8 rows": {"verb": "sft", "size": "S"},
    "sft M, 4 rows": {"verb": "sft", "size": "M", "per_device_train_batch_size": 4},
    "dpo S, 16 rows": {"verb": "dpo", "size": "S", "per_device_train_batch_size": 16},
    "sft M, 8 rows, lora_r 16": {"verb": "sft", "size": "M", "lora_r": 16},
    "reward S, 16 rows": {"verb": "reward", "size": "S", "per_device_train_batch_size": 16},
    "sft S, 32 rows": {"verb": "sft", "size": "S", "per_device_train_batch_size": 32},
    "sft M, 8 rows, checkpointing": {"verb": "sft", "size": "M", "gradient_checkpointing": True},
    "sft S, 3 x 8 rows": {"verb": "sft", "size": "S", "gradient_accumulation_steps": 3},
    "dpo M, 4 rows": {"verb": "dpo", "size": "M", "per_device_train_batch_size": 4},
    "pretrain S, 32 rows, no save": {"verb": "pretrain", "size": "S", "per_device_train_batch_size": 32, "save_steps": 0},
}  # fmt: skip


def peak_of(words: list[str], threads: int) -> tuple[float, str]:
    """Highest resident set in MB, and what was printed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "120"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen([sys.executable, "-m", "trueline", *words], stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {text}")
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024), text


def seconds_of(out: Path, verb: str) -> float:
    """From the line that describes the run to its last step: reference log-probs are within."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    began = next(datetime.fromisoformat(one["time"]) for one in events if one["event"].startswith(f"{verb}: "))
    last = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return json.loads(last)["time"] - began.timestamp()


def compare(name: str, folder: Path, threads: int) -> str:
    """A row of the table: predict, run, look."""
    run = RUNS[name]
    model, place = folder / run["size"], "".join(letter if letter.isalnum() else "-" for letter in name)
    data = {"sft": "sft.jsonl", "pretrain": "text.jsonl"}.get(run["verb"], "pairs.jsonl")
    options = {key: value for key, value in run.items() if key != "size"}
    options |= {"model": str(model), "data": [str(model / data)], "max_steps": 2, "max_length": 512, "logging_steps": 1}
    options |= {"max_train_samples": 48}
    config = folder / f"{place}.yaml"
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    _, said = peak_of(["plan", str(config)], threads)
    found = re.search(r"([\d,]+) MB  at the peak\n.* steps, ([\d.e+]+) s each", said)
    assert found, said
    predicted, seconds = float(found[1].replace(",", "")), float(found[2]) * 2
    measured, _ = peak_of([run["verb"], "--config", str(config), "--out", str(folder / place)], threads)
    took = seconds_of(folder / place, run["verb"])
    return f"| {name} | {predicted:,.0f} | {measured:,.0f} | {predicted / measured:.2f} | {seconds:.0f} | {took:.0f} |"


def main() -> None:
    """Predict and measure every run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--quick", action="store_true", help="two runs only")
    args = parser.parse_args()
    names = [name for name in RUNS if args.only in name][: 2 if args.quick else None]
    print(f"{date.today()}, {args.threads} threads\n")
    print("| run | predicted MB | measured MB | predicted / measured | predicted s | measured s |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in sorted({RUNS[name]["size"] for name in names}):
            prepared(folder / size, size, 48)
            pairs = (folder / size / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
            texts = [json.dumps({"text": json.loads(row)["chosen"] * 3}) for row in pairs]
            (folder / size / "text.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
        for name in names:
            print(compare(name, folder, args.threads), flush=True)


if __name__ == "__main__":
    main()
