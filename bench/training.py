"""Training against TRL: SFT, DPO and reward models on the same folder of weights, rows, precision and batch.

Claim: on a CPU the same work takes a fraction of TRL's time and memory, because nothing is padded, a prompt is computed
once, the head sees scored positions only, and reference log-probs are one pass over trees.

    python bench/training.py [--methods sft dpo reward] [--sizes S M] [--precisions fp32] [--repeats 3] [--quick]
    python bench/training.py --threads 1 --clock cpu      CPU seconds of one thread: for a machine that does other things

Every measurement is a process of its own, ours and the peer's in turns. Timed: from the call of train() with rows
tokenised and weights loaded to the end of the last step; DPO includes the pass for reference log-probs on both sides.
Peak memory is the process's highest resident set. The peer runs as it comes (stock), and with
set_float32_matmul_precision("medium"); SFT also packed, and padded with rows grouped by length; DPO with the reference
computed in each step and before training. The best of them stands in the ratio, the others in the table.
Left out: GPUs, several processes, reading and tokenising.

S: 256 wide, 6 layers, 8/4 heads, inner width 768, vocabulary 4,096. M: 512, 10, 8/4, 1,408, 8,192. Llama, random weights.
Rows: prompts of 20-200 tokens (median 93), responses of 20-150 (median 52), cut from the standard library's source.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"S": (256, 6, 768, 4096), "M": (512, 10, 1408, 8192)}
ROWS_PER_STEP = 8
PEERS = {
    ("sft", "fp32"): ("padded", "padded medium", "grouped medium", "packed medium"),
    ("dpo", "fp32"): ("on the fly", "on the fly medium", "precomputed medium"),
    ("reward", "fp32"): ("padded", "padded medium"),
    ("sft", "bf16"): ("padded", "grouped", "packed"),
    ("dpo", "bf16"): ("on the fly", "precomputed"),
    ("reward", "bf16"): ("padded",),
}
"""What the peer is run with, by method and precision."""


def prepare(folder: Path, size: str, num_rows: int) -> None:
    """Tokenizer, random weights, and rows of a size in `folder`."""
    from trueline.models.config import DecoderConfig
    from trueline.models.files import new_model, save_model
    from trueline.tokens import train_tokenizer

    width, layers, inner, vocabulary = SHAPES[size]
    source = sorted(Path(os.__file__).parent.glob("[a-z]*.py"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in source)
    tokenizer = train_tokenizer([text[i : i + 10_000] for i in range(0, 2_000_000, 10_000)], vocab_size=vocabulary)
    tokenizer.save(folder)
    config = DecoderConfig(
        model_type="llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=width // 8, max_position_embeddings=512,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save_model(new_model(config, 0), folder)
    ids, rng = tokenizer.encode(text[2_000_000:5_000_000]), np.random.default_rng(0)

    def cut(median: float, low: int, high: int) -> str:
        length = int(np.clip(median * np.exp(0.5 * rng.standard_normal()), low, high))
        start = int(rng.integers(len(ids) - length))
        return tokenizer.decode(ids[start : start + length])

    rows = [{"prompt": cut(93, 20, 200), "chosen": cut(52, 20, 150), "rejected": cut(52, 20, 150)} for _ in range(num_rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = ({"prompt": row["prompt"], "completion": row["chosen"]} for row in rows)
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")


def prepared(folder: Path, size: str, num_rows: int) -> None:
    """`prepare` in a process of its own: the highest resident set of a child begins with that of the process that starts it."""
    process = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder, size, num_rows))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{folder} could not be prepared")


def ours(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """Train with this library; the seconds, and what was computed."""
    import trueline
    from trueline.models.files import load_model, load_scalar_model
    from trueline.objectives.dpo import DPO
    from trueline.objectives.reward import Reward
    from trueline.objectives.sft import SFT
    from trueline.train.data import encode

    objective = {"sft": SFT, "dpo": DPO, "reward": Reward}[task["method"]]()
    folder = Path(task["folder"])
    tokenizer = trueline.load_tokenizer(folder)
    model = load_scalar_model(folder) if task["method"] == "reward" else load_model(folder)
    rows = encode(folder / task["data"], objective, tokenizer, 512).rows
    losses: list[float] = []
    ends: list[float] = []

    def note(step: int, metrics: Any) -> None:
        ends.append(clock())
        losses.append(metrics["loss"])

    with tempfile.TemporaryDirectory() as out:
        start = clock()
        trueline.train(
            objective, model, rows, out=Path(out) / "run", tokenizer=tokenizer, sinks=[note], logging_steps=1, save_steps=0,
            max_steps=task["steps"], per_device_train_batch_size=ROWS_PER_STEP, learning_rate=1e-5, max_length=512,
            bf16=task["precision"] == "bf16",
        )  # fmt: skip
    return {"seconds": ends[-1] - start, "first": ends[0] - start, "losses": losses}


def peer(task: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """The same with TRL."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    how, method = task["side"], task["method"]
    if "medium" in how:
        torch.set_float32_matmul_precision("medium")
    ends: list[float] = []
    losses: list[float] = []

    class Note(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clock())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    tokenizer = AutoTokenizer.from_pretrained(task["folder"])
    auto = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    extra: dict[str, Any] = {"num_labels": 1} if method == "reward" else {}
    model = auto.from_pretrained(task["folder"], dtype=torch.float32, attn_implementation="sdpa", **extra)
    data = load_dataset("json", data_files=str(Path(task["folder"]) / task["data"]), split="train")
    with tempfile.TemporaryDirectory() as out:
        common: dict[str, Any] = dict(
            output_dir=out, per_device_train_batch_size=ROWS_PER_STEP, max_steps=task["steps"], learning_rate=1e-5,
            max_length=512, bf16=task["precision"] == "bf16", use_cpu=True, report_to=[], save_strategy="no",
            logging_steps=1, gradient_checkpointing=False, disable_tqdm=True, seed=0,
        )  # fmt: skip
        if "grouped" in how:
            common["train_sampling_strategy"] = "group_by_length"
        if method == "sft":
            packing: dict[str, Any] = {"packing": True, "packing_strategy": "bfd"} if "packed" in how else {}
            trainer = SFTTrainer(model, args=SFTConfig(**common, **packing), train_dataset=data, processing_class=tokenizer)
        elif method == "dpo":
            before = "precomputed" in how
            config = DPOConfig(**common, precompute_ref_log_probs=before, precompute_ref_batch_size=ROWS_PER_STEP)
            if before:  # in the constructor or in train(), whichever the version does it in
                data = data.select(range(task["steps"] * ROWS_PER_STEP))
            built = clock()
            trainer = DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
            built = clock() - built
        else:
            trainer = RewardTrainer(model, args=RewardConfig(**common), train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(Note)
        start = clock()
        trainer.train()
    return {"seconds": ends[-1] - start, "first": ends[0] - start, "losses": losses}


def work(task: dict[str, Any]) -> None:
    """One measurement, in a process of its own: prints a line of JSON."""
    import torch

    torch.set_num_threads(task["threads"])
    clock = time.process_time if task["clock"] == "cpu" else time.perf_counter
    side = ours if task["side"] == "ours" else peer
    found = side(task, clock) | {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print("RESULT " + json.dumps(found))


def measure(task: dict[str, Any], script: str = __file__) -> dict[str, Any]:
    """Run `work` of a script in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"]), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, script, "--worker", json.dumps(task)], capture_output=True, text=True, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def compare(task: dict[str, Any], repeats: int) -> list[str]:
    """Rows of the table: ours, and each way to run the peer."""
    sides = ("ours", *PEERS[task["method"], task["precision"]])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            found[side].append(measure(task | {"side": side}))
            print(f"  {task['method']} {task['size']} {side}: {found[side][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    seconds = {side: np.array([one["seconds"] for one in runs]) for side, runs in found.items()}
    memory = {side: np.median([one["megabytes"] for one in runs]) for side, runs in found.items()}
    units = task["steps"] * ROWS_PER_STEP
    lines = []
    for side in sides:
        ratios = seconds[side] / seconds["ours"]
        loss = np.mean(found[side][0]["losses"])
        lines.append(
            f"| {task['method']} {task['size']} {task['precision']} | {side} | {units / np.median(seconds[side]):.2f} | "
            f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f} | {memory[side]:,.0f} | "
            f"{memory['ours'] / memory[side]:.2f} | {loss:.4f} |"
        )
    return lines


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["sft", "dpo", "reward"], choices=["sft", "dpo", "reward"])
    parser.add_argument("--sizes", nargs="+", default=["S", "M"], choices=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="steps of 8 rows; 0: 24 for S, 8 for M")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: this process's seconds; for one thread")
    parser.add_argument("--quick", action="store_true", help="two steps of S, once: only shows that it runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    sizes, repeats = (["S"], 1) if args.quick else (args.sizes, args.repeats)
    print(f"{date.today()}, {args.threads} threads, {repeats} repeats, {args.clock} clock\n")
    print("| work | side | rows/s | side / ours | min-max | peak MB | ours / side | mean loss |\n" + "|---" * 8 + "|")
    for size in sizes:
        steps = 2 if args.quick else args.steps or {"S": 24, "M": 8}[size]
        with tempfile.TemporaryDirectory() as folder:
            prepared(Path(folder), size, steps * ROWS_PER_STEP)
            for method in args.methods:
                for precision in args.precisions:
                    task = {
                        "method": method, "size": size, "precision": precision, "steps": steps, "folder": folder,
                        "data": "sft.jsonl" if method == "sft" else "pairs.jsonl", "threads": args.threads, "clock": args.clock,
                    }  # fmt: skip
                    print("\n".join(compare(task, repeats)), flush=True)


if __name__ == "__main__":
    main()
