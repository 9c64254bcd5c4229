"""Low-bit weights: bytes, speed of the native products, and what the shipped base model loses on text it was not trained on.

Claim: (1) 4-bit weights make a product with weights from memory faster, and cost nothing for many rows, (2) NF4 and asymmetric
int4 lose less than symmetric int4 at equal groups, (3) int8 loses nothing that can be measured.

    python bench/lowbit.py [--repeats 9] [--windows 30] [--quick]    two minutes on one core; --quick only shows that it runs

Speed: native products in float32 and each code in turn, one thread; within a repeat the best of each one's calls, and one
ratio. MKL is torch's own product. Loss: windows of 512 tokens from modules of Python's library that the model was not trained
on (`TEST_PACKAGES` of the quickstart); the change of the mean negative log-likelihood against the same windows in float32, with
its standard error over windows. Left out: more threads, other devices.

Legend: T rows, N outputs, K inputs, W windows.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import math
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import trueline
from trueline.models.decoder import Decoder
from trueline.models.files import load_model
from trueline.models.layout import Layout
from trueline.models.lowbit import Code, LowBitLinear, quantize_linears
from trueline.quickstart.base_model import base_model_dir
from trueline.records import Sampling
from trueline.serve.engine import Engine
from trueline.serve.native.compiled import load
from trueline.serve.native.weights import weight_of
from trueline.serve.request import Options

CODES: tuple[tuple[Code, int], ...] = (
    ("int8", 64), ("int4", 64), ("int4", 32), ("int4_asymmetric", 64), ("int4_asymmetric", 32), ("nf4", 64),
)  # fmt: skip
MODULES = (
    "json.decoder",
    "configparser",
    "shutil",
    "tarfile",
    "zipfile",
    "http.client",
    "email.message",
    "urllib.request",
)
LENGTH = 512


def held_out(count: int) -> list[Tensor]:
    """Windows of token ids, in turn from each module."""
    tokenizer = trueline.load_tokenizer(base_model_dir())
    found: list[list[Tensor]] = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        ids = torch.tensor(tokenizer.encode(Path(spec.origin).read_text(encoding="utf-8")))
        found.append(list(ids.split(LENGTH)[:-1]))
    return [windows[i] for i in range(max(map(len, found))) for windows in found if i < len(windows)][:count]


@torch.no_grad()
def losses(model: Decoder, windows: Iterable[Tensor]) -> np.ndarray:
    """Mean negative log-likelihood of a token per window [W]."""
    return np.array([-float(model.token_logps(Layout.packed([ids.numpy()])).logps_N.mean()) for ids in windows])


def quality(windows: list[Tensor]) -> list[str]:
    """A line per code."""
    folder = base_model_dir()
    exact = load_model(folder)
    weights = [module for module in exact.layers.modules() if type(module) is nn.Linear]
    count, base_W = sum(module.weight.numel() for module in weights), losses(exact, windows)
    lines = [
        f"Base model: {count:,} weights in {len(weights)} linear layers, {4 * count / 1e6:.1f} MB in float32; {len(windows)} windows, "
        f"perplexity {math.exp(base_W.mean()):.3f}\n",
        "| code | group | bits a weight | MB | squared error | change of the loss | perplexity |\n|---|---|---|---|---|---|---|",
    ]
    for code, group in CODES:
        model = load_model(folder)
        quantize_linears(model, code, group)
        low = [module for module in model.layers.modules() if isinstance(module, LowBitLinear)]
        size = sum(module.num_bytes for module in low)
        pairs = [(a.weight, b.part(0, b.out_features, torch.float32)) for a, b in zip(weights, low, strict=True)]
        error = sum(float((a.detach() - b).square().sum()) for a, b in pairs) / sum(
            float(a.detach().square().sum()) for a, _ in pairs
        )
        change_W = losses(model, windows) - base_W
        spread = change_W.std(ddof=1) / math.sqrt(len(change_W))
        lines.append(
            f"| {code} | {group} | {8 * size / count:.2f} | {size / 1e6:.2f} | {error:.5f} | {change_W.mean():+.4f} ± {spread:.4f} | "
            f"{math.exp(base_W.mean() + change_W.mean()):.3f} |"
        )
    return lines


def cache_losses(model: Decoder, windows: Iterable[Tensor], dtype: torch.dtype | None) -> np.ndarray:
    """The same [W] by the engine, each token attending to what the cache holds of those before it."""
    engine, found = Engine(model, stop_ids=(), cache_dtype=dtype), []
    for ids in windows:
        engine.submit(ids.numpy(), Sampling(max_new_tokens=1), Options(prompt_logps=True))
        while engine.busy:
            found += [-float(event.prompt.logps.mean()) for event in engine.step() if event.prompt is not None]
    return np.array(found)


def cache_quality(windows: list[Tensor]) -> str:
    """What 8 bits of the cache cost."""
    model = load_model(base_model_dir())
    exact_W, rounded_W = (cache_losses(model, windows, dtype) for dtype in (None, torch.int8))
    change_W = rounded_W - exact_W
    size = {dtype: model.new_cache(1, dtype=dtype).block_bytes for dtype in (None, torch.int8)}
    return (
        f"Cache in 8 bits: {size[None] / size[torch.int8]:.2f} times as many tokens in the same bytes; change of the loss "
        f"{change_W.mean():+.5f} ± {change_W.std(ddof=1) / math.sqrt(len(change_W)):.5f}, perplexity {math.exp(rounded_W.mean()):.3f}"
    )


def seconds(run: Callable[[], object], budget: float) -> float:
    """The best of the calls that fit into the budget."""
    best, end = math.inf, time.perf_counter() + budget
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def speed(library: ctypes.CDLL, N: int, K: int, T: int, repeats: int, budget: float) -> str:
    """One line: float32's time, and how many times as fast the others are."""
    dense, x_TK, y_TN = nn.Linear(K, N, bias=False), torch.randn(T, K), torch.empty(T, N)
    bfloat = nn.Linear(K, N, bias=False, dtype=torch.bfloat16)
    layers = [dense, bfloat, *(LowBitLinear(dense, code, group) for code, group in CODES if group == 64)]
    structs = [weight_of(layer) for layer in layers]

    def native(number: int) -> Callable[[], object]:
        return lambda: library.trueline_product(structs[number], x_TK.data_ptr(), K, T, y_TN.data_ptr(), N, 0, N, 0)

    runs = [native(number) for number in range(len(layers))] + [lambda: torch.mm(x_TK, dense.weight.T, out=y_TN)]
    with torch.no_grad():
        times = np.array([[seconds(run, budget) for run in runs] for _ in range(repeats)])
    ratios = [f"{np.median(r):.2f} ({r.min():.2f}-{r.max():.2f})" for r in (times[:, :1] / times[:, 1:]).T]
    return f"| {N} x {K} | {T} | {np.median(times[:, 0]) * 1e6:,.0f} | " + " | ".join(ratios) + " |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each speed")
    parser.add_argument("--windows", type=int, default=30, help="of held-out text")
    parser.add_argument("--quick", action="store_true", help="small shapes, two repeats, two windows")
    args = parser.parse_args()
    repeats, windows = (2, 2) if args.quick else (args.repeats, args.windows)
    torch.set_num_threads(1)
    loaded = load()
    print(f"{date.today()}, torch {torch.__version__}, one thread, {repeats} repeats\n")
    print("\n".join(quality(held_out(windows))), flush=True)
    print(f"\n{cache_quality(held_out(windows))}", flush=True)
    if loaded.handle is None:
        print(f"\nno speed: {loaded.reason}")
        return
    print(
        "\n| N x K | T | float32, us | bfloat16 | int8 | int4 | int4_asymmetric | nf4 | MKL, float32 |"
        + "\n"
        + "|---" * 9
        + "|"
    )
    for N, K in ((256, 256),) if args.quick else ((1408, 512), (4096, 4096)):
        for T in (1, 8, 64):
            budget = 0.004 if args.quick or N < 4096 or T < 64 else 0.0
            print(speed(loaded.handle, N, K, T, repeats, budget), flush=True)


if __name__ == "__main__":
    main()
