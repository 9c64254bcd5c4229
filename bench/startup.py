"""From the command to the end of the first step, in a new process: ours and TRL's.

Claim: `trueline sft` has taken its first step within 5 seconds, files cached, 1,000 rows.

    python bench/startup.py [--threads 2] [--repeats 5] [--quick]

Timed: from the start of the process to the line that its first optimizer step prints: interpreter, imports, rows read and
tokenised, weights loaded, one step of 8 rows. Both train the model S of training.py from the same folder and rows, in
turns; the first pair only fills the file cache and is not counted. `sft --help` and `--help` are timed to their end.
Left out: GPUs, models too large for the file cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from training import ROWS_PER_STEP, prepare

ROWS = 1000
PEER = """
import sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

class Note(TrainerCallback):
    def on_step_end(self, *_, **__):
        print("FIRST STEP", flush=True)

folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
data = load_dataset("json", data_files=folder + "/sft.jsonl", split="train", cache_dir=out + "/cache")
args = SFTConfig(output_dir=out, per_device_train_batch_size=%d, max_steps=1, max_length=512, bf16=False, use_cpu=True, report_to=[],
                 save_strategy="no", gradient_checkpointing=False, disable_tqdm=True)
SFTTrainer(model, args=args, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Note()]).train()
""" % ROWS_PER_STEP  # noqa: UP031  (the text is full of braces)


def seconds_until(marker: str, command: list[str], threads: int) -> float:
    """From the start of a process to the line that holds `marker`, or to its end when that is ""."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    start, found, lines = time.perf_counter(), 0.0, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if marker and marker in line and not found:
                found = time.perf_counter() - start
    if process.returncode or (marker and not found):
        raise RuntimeError(f"{' '.join(command)}: {''.join(lines[-20:])}")
    return found or time.perf_counter() - start


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat: only shows that it runs")
    args = parser.parse_args()
    repeats = 1 if args.quick else args.repeats
    trueline = [sys.executable, "-m", "trueline"]
    found: dict[str, list[float]] = {"sft, first step": [], "TRL's SFTTrainer, first step": [], "sft --help": [], "--help": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        prepare(folder, "S", ROWS)
        for repeat in range(repeats + 1):
            out = Path(place) / f"run-{repeat}"
            sft = [*trueline, "sft", "--model", str(folder), "--data", str(folder / "sft.jsonl"), "--out", str(out), "--max_steps", "1",
                   "--per_device_train_batch_size", str(ROWS_PER_STEP), "--save_steps", "0", "--max_length", "512"]  # fmt: skip
            commands = {
                "sft, first step": ("sft 1/1", sft),
                "TRL's SFTTrainer, first step": ("FIRST STEP", [sys.executable, "-c", PEER, str(folder), f"{out}-peer"]),
                "sft --help": ("", [*trueline, "sft", "--help"]),
                "--help": ("", [*trueline, "--help"]),
            }
            for name, (marker, command) in commands.items():
                found[name].append(seconds_until(marker, command, args.threads))
    print(f"{date.today()}, {args.threads} threads, {repeats} repeats, wall clock\n")
    print("| command | median, s | min-max |\n|---|---|---|")
    for name, times in found.items():
        counted = times[1:]
        print(f"| {name} | {np.median(counted):.2f} | {min(counted):.2f}-{max(counted):.2f} |")
    ratios = np.array(found["TRL's SFTTrainer, first step"][1:]) / np.array(found["sft, first step"][1:])
    print(f"\nTRL / ours, first step: {np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})")


if __name__ == "__main__":
    main()
