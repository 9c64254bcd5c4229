"""Fifty steps of every method, kept: the loss and the gradient norm that this code is known to give.

    python tests/train/golden.py              how far this machine is from golden.json, and how far rounding alone can go
    python tests/train/golden.py --record     write golden.json anew: only after a change that is meant to change training

Weights and rows come from numpy's PCG64, whose numbers are the same on every processor; torch's are not. What is left is
rounding, which differs with the vector width, the library's kernels and the number of threads. `--spread` measures it: the
same fifty steps with other kernels, and from weights that differ by one rounding.

Not a test file: pytest does not collect it, and nothing records but this command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel
from trueline.objectives import discover
from trueline.records import Row
from trueline.run import read_lines
from trueline.train import train

FILE = Path(__file__).with_name("golden.json")
METHODS = ("pretrain", "sft", "reward", "dpo")
STEPS, VOCAB = 50, 64
Trajectory = dict[str, list[float]]
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS, "learning_rate": 1e-3, "warmup_ratio": 0.1, "weight_decay": 0.1, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "logging_steps": 1, "save_steps": 0,
}  # fmt: skip


def weights(head: str, jitter: float = 0.0) -> Decoder | ScalarModel:
    """20,000 parameters. `jitter` 1 moves each by at most half of float32's spacing: what one rounding does."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(1)
    decoder = Decoder(DecoderConfig(
        model_type="qwen3", vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, qk_norm=True, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
    ))  # fmt: skip
    model: Any = decoder if head == "tokens" else ScalarModel(decoder)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            values = 0.08 * rng.standard_normal(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0)
            values *= 1 + jitter * 2.0**-24 * noise.uniform(-1, 1, parameter.shape)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def rows(method: str) -> list[Row]:
    """40 rows: a prompt, a response that counts up from it, and for pairs one of noise."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(40):
        prompt = rng.integers(2, VOCAB, int(rng.integers(3, 12)))
        good = (prompt[-1] + np.arange(1, int(rng.integers(4, 12)))) % VOCAB
        bad = rng.integers(2, VOCAB, int(rng.integers(3, 12)))
        answers = (good, bad) if method in ("reward", "dpo") else (good,)
        ids = tuple(np.concatenate([prompt, answer, [1]]).astype(np.int32) for answer in answers)
        first = 1 if method == "pretrain" else len(prompt)
        found.append(Row(ids=ids, scored=tuple(np.arange(len(x)) >= first for x in ids), key=f"{method}-{number}"))
    return found


def trajectory(method: str, jitter: float = 0.0, **options: Any) -> Trajectory:
    """{"loss": [50], "grad_norm": [50]} of one method, computed now."""
    objective = discover()[method]()
    with tempfile.TemporaryDirectory() as folder:
        out = train(objective, weights(objective.head, jitter), rows(method), out=Path(folder) / "run", **OPTIONS | options)
        metrics = read_lines(out / "metrics.jsonl")
    return {name: [row[name] for row in metrics] for name in ("loss", "grad_norm")}


def drift(found: Trajectory, golden: Trajectory) -> dict[str, tuple[float, float]]:
    """name -> (maximum, mean) over the steps of |found - golden| / golden's mean size."""
    result = {}
    for name, expected in golden.items():
        apart = np.abs(np.array(found[name]) - np.array(expected)) / np.mean(np.abs(expected))
        result[name] = (float(apart.max()), float(apart.mean()))
    return result


def spread() -> None:
    """Print the drift from golden.json under every kernel that this processor can be told to use."""
    kernels = [{}, {"ATEN_CPU_CAPABILITY": "default"}, {"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}]
    kernels += [{"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}]
    kernels += [{"OMP_NUM_THREADS": "2"}, {"JITTER": "1"}]
    for setting in kernels:
        print(" ".join(f"{name}={value}" for name, value in setting.items()) or "as it is", flush=True)
        subprocess.run([sys.executable, __file__], env={**os.environ, **setting}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="golden trajectories")
    parser.add_argument("--record", action="store_true", help="write golden.json anew")
    parser.add_argument("--spread", action="store_true", help="the drift under other kernels")
    words = parser.parse_args()
    if words.spread:
        spread()
        return
    found = {method: trajectory(method, float(os.environ.get("JITTER", "0"))) for method in METHODS}
    if words.record:
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"recorded {FILE}")
        return
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    for method in METHODS:
        for name, (largest, mean) in drift(found[method], golden[method]).items():
            print(f"  {method:9} {name:10} maximum {largest:.1e}  mean {mean:.1e}", flush=True)


if __name__ == "__main__":
    main()
