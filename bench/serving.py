"""Serving against transformers and llama.cpp: tokens per second at 1, 8 and 64 requests at once.

Claim: on a CPU the engine is several times transformers' generate and its continuous batching at any number of requests, and
level with llama.cpp at the same bits, because a step is one call, keys and values stay in place, and weights are read once.

    python bench/serving.py [--sizes S M] [--requests 1 8 64] [--bits fp32 bf16 int8] [--repeats 3] [--quick]
    python bench/serving.py --llama FOLDER      where llama-cpp-python lies (pip install --target FOLDER llama-cpp-python)
    python bench/serving.py --skip "continuous batching"      leave out sides whose name holds this

Models S and M of training.py, the same weights for everybody (llama.cpp: GGUF by `trueline export`). Prompts of 64 random
tokens, 128 new ones each, greedy, no end token, all requests at once; nobody has seen the prompts before. Every
measurement of a size and a side is a process of its own, in turns over the sides; in it each number of requests is warmed
up and timed. Timed: from the requests to the last token, prompts included (tokens/s); a second run with one new token each
gives the time of the prompts, and what is left is the time of 127 decode steps.

Peers run as they come and tuned: generate also with set_float32_matmul_precision("medium"); continuous
batching with its manager kept between calls; llama.cpp with flash attention on and
off, one cache per sequence, the number of threads (all or half) that a short trial finds faster. The best of a
peer's ways at that number of requests stands in the last table, against ours of the same bits (Q8_0 against int8). Share: what
a decode step at 1 request reads of weights, against the read bandwidth that a sum over 512 MB reaches here in the same process.
Left out: GPUs, HTTP (tests and docs of the server), arrival over time (`trueline bench serve`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from training import SHAPES, measure, prepare

PROMPT, NEW = 64, 128
SIDES = {
    "ours fp32": ("fp32", "ours"),
    "ours bf16": ("bf16", "ours"),
    "ours int8": ("int8", "ours"),
    "ours int4": ("int4", "ours"),
    "generate fp32": ("fp32", "generate"),
    "generate fp32 medium": ("fp32", "generate"),
    "generate bf16": ("bf16", "generate"),
    "continuous batching fp32": ("fp32", "continuous batching"),
    "continuous batching bf16": ("bf16", "continuous batching"),
    "llama.cpp F32": ("fp32", "llama.cpp"),
    "llama.cpp F32 flash": ("fp32", "llama.cpp"),
    "llama.cpp BF16 flash": ("bf16", "llama.cpp"),
    "llama.cpp Q8_0": ("int8", "llama.cpp"),
    "llama.cpp Q8_0 flash": ("int8", "llama.cpp"),
    "llama.cpp Q4_0": ("int4", "llama.cpp"),
    "llama.cpp Q4_0 flash": ("int4", "llama.cpp"),
}
"""Name -> bits, and whose it is."""
BYTES = {"fp32": 4, "bf16": 2, "int8": 34 / 32, "int4": 18 / 32}
"""Per weight in a file, with scales of 32 (llama.cpp)."""
OURS = {**BYTES, "int8": 1 + 4 / 64, "int4": 1 / 2 + 4 / 64}
"""The same here: float32 scales of 64."""
Run = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, new tokens each) -> the new tokens."""


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))


def prepare_all(folder: Path, size: str) -> None:
    """The model of a size, and its GGUF files."""
    from trueline.models.files import load_model
    from trueline.models.gguf import write_gguf

    prepare(folder, size, 1)
    model = load_model(folder)
    for kind in ("f32", "bf16", "q8_0", "q4_0"):
        write_gguf(model, folder / f"{kind.upper()}.gguf", kind=kind)  # type: ignore[arg-type]


def weight_bytes(size: str, side: str) -> float:
    """What a decode step reads of matrices: all but the embedding, of which it takes rows."""
    width, layers, inner, vocabulary = SHAPES[size]
    bits, whose = SIDES[side]
    per = (OURS if whose == "ours" else BYTES)[bits]
    head = (OURS if whose == "ours" else BYTES)["int8"] if bits == "int4" else per
    return layers * (3 * width * width + 3 * width * inner) * per + vocabulary * width * head


# ---- the sides


def ours(task: dict[str, Any], most: int) -> Run:
    """This library's engine."""
    import torch

    from trueline.models.files import load_model
    from trueline.records import Sampling
    from trueline.serve.engine import Engine

    bits = SIDES[task["side"]][0]
    model = load_model(task["folder"], dtype=torch.bfloat16 if bits == "bf16" else torch.float32)
    if bits.startswith("int"):
        from trueline.models.lowbit import quantize_linears

        quantize_linears(model, bits)  # type: ignore[arg-type]
    engine = Engine(model.eval(), max_batch=most, stop_ids=())

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        drawn = engine.sample(prompts, Sampling(temperature=0.0, max_new_tokens=new))
        return [list(map(int, samples[0].ids)) for samples in drawn]

    return run


def transformers_model(task: dict[str, Any], attention: str) -> Any:
    """The peer's model."""
    import torch
    from transformers import AutoModelForCausalLM

    if "medium" in task["side"]:
        torch.set_float32_matmul_precision("medium")
    dtype = torch.bfloat16 if "bf16" in task["side"] else torch.float32
    return AutoModelForCausalLM.from_pretrained(task["folder"], dtype=dtype, attn_implementation=attention).eval()


def generate(task: dict[str, Any], most: int) -> Run:
    """transformers, all prompts as one batch."""
    import torch

    model = transformers_model(task, "sdpa")

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
            )
        return found[:, ids.shape[1] :].tolist()

    return run


def continuous_batching(task: dict[str, Any], most: int) -> Run:
    """transformers' paged cache and scheduler."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = transformers_model(task, "sdpa")
    blocks = most * -(-(PROMPT + NEW) // 32) + 8
    config = ContinuousBatchingConfig(page_size=32, num_blocks=blocks, max_batch_tokens=max(512, most))

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        greedy = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        found = model.generate_batch(
            prompts, generation_config=greedy, continuous_batching_config=config, warmup=False, persistent_manager=True
        )
        return [result.generated_tokens for result in found.values()]

    return run


def llama_cpp(task: dict[str, Any], most: int) -> Run:
    """llama.cpp: every step one batch of all sequences."""
    if task["llama"]:
        sys.path.insert(0, task["llama"])
    import llama_cpp as l

    l.llama_backend_init()
    kind = task["side"].split()[1]
    loaded = l.llama_model_load_from_file(str(Path(task["folder"]) / f"{kind}.gguf").encode(), l.llama_model_default_params())
    vocabulary = SHAPES[task["size"]][3]
    contexts: dict[int, Any] = {}
    tuned: dict[int, int] = {}

    def context(count: int) -> Any:
        if count not in contexts:
            params = l.llama_context_default_params()
            params.n_ctx, params.n_seq_max, params.n_batch = count * 256, count, 2048
            params.n_threads = params.n_threads_batch = task["threads"]
            params.flash_attn_type = int("flash" in task["side"])
            contexts[count] = l.llama_init_from_model(loaded, params), l.llama_batch_init(2048, 0, 1)
        return contexts[count]

    def decode(where: Any, batch: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, wanted) of every row."""
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        batch.n_tokens = len(rows)
        if l.llama_decode(where, batch):
            raise RuntimeError("llama_decode failed")

    def best(where: Any, rows: int) -> list[int]:
        logits = np.ctypeslib.as_array(l.llama_get_logits(where), shape=(rows, vocabulary))
        return logits.argmax(1).tolist()

    def timed(prompts: list[list[int]], new: int) -> list[list[int]]:
        where, batch = context(len(prompts))
        l.llama_memory_clear(l.llama_get_memory(where), False)
        drawn: list[list[int]] = [[] for _ in prompts]
        per = 2048 // PROMPT
        for first in range(0, len(prompts), per):
            group = range(first, min(first + per, len(prompts)))
            decode(where, batch, [(t, p, s, p == PROMPT - 1) for s in group for p, t in enumerate(prompts[s])])
            for s, token in zip(group, best(where, len(group)), strict=True):
                drawn[s].append(token)
        for step in range(new - 1):
            decode(where, batch, [(tokens[-1], PROMPT + step, s, True) for s, tokens in enumerate(drawn)])
            for tokens, token in zip(drawn, best(where, len(prompts)), strict=True):
                tokens.append(token)
        return drawn

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        count = len(prompts)
        if count not in tuned:
            seconds = {}
            for threads in {task["threads"], max(1, task["threads"] // 2)}:
                l.llama_set_n_threads(context(count)[0], threads, threads)
                timed(prompts, 4)
                start = time.perf_counter()
                timed(prompts, 16)
                seconds[threads] = time.perf_counter() - start
            tuned[count] = min(seconds, key=lambda threads: seconds[threads])
            l.llama_set_n_threads(context(count)[0], tuned[count], tuned[count])
        return timed(prompts, new)

    return run


def bandwidth() -> float:
    """Bytes per second that a sum over 512 MB reads, the best of several."""
    import torch

    x = torch.ones(128 << 20)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - start)
    return x.numel() * 4 / min(seconds)


def work(task: dict[str, Any]) -> None:
    """One side at every number of requests: prints a line of JSON."""
    import torch

    torch.set_num_threads(task["threads"])
    whose, counts = SIDES[task["side"]][1], task["requests"]
    makers = {"ours": ours, "generate": generate, "continuous batching": continuous_batching, "llama.cpp": llama_cpp}
    run, found = makers[whose](task, max(counts)), {}
    rng, vocabulary = np.random.default_rng(task["repeat"]), SHAPES[task["size"]][3]
    for count in counts:
        warm, prompts, again = (rng.integers(4, vocabulary, (count, PROMPT)).tolist() for _ in range(3))
        run(warm, 8)
        start = time.perf_counter()
        drawn = run(prompts, task["new"])
        whole = time.perf_counter() - start
        start = time.perf_counter()
        run(again, 1)
        first = time.perf_counter() - start
        short = [len(tokens) for tokens in drawn if len(tokens) != task["new"]]
        assert len(drawn) == count and not short, f"{len(drawn)} responses of {count}, lengths {short[:5]}"
        rows = [tokens[:16] for tokens in drawn]
        found[count] = {"rate": count * task["new"] / whole, "step": (whole - first) / (task["new"] - 1), "first": first, "ids": rows}
    share = weight_bytes(task["size"], task["side"]) / found[1]["step"] / bandwidth() if 1 in found else 0.0
    print("RESULT " + json.dumps({"counts": found, "share": share}))


# ---- the table


def compare(task: dict[str, Any], sides: list[str], repeats: int) -> list[str]:
    """Rows of the first table, then those of the second."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            start = time.perf_counter()
            found[side].append(measure(task | {"side": side, "repeat": repeat}, __file__))
            print(f"  {task['size']} {side}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    lines, ratios = [], []
    for count in map(str, task["requests"]):
        rates = {side: np.array([one["counts"][count]["rate"] for one in runs]) for side, runs in found.items()}
        for side in sides:
            one = [run["counts"][count] for run in found[side]]
            like = found.get(f"ours {SIDES[side][0]}") or found.get("ours fp32") or found[side]
            pairs = [(a, b) for x, y in zip(one, like, strict=True) for a, b in zip(x["ids"], y["counts"][count]["ids"], strict=True)]
            share = f"{np.median([run['share'] for run in found[side]]):.0%}" if count == "1" else ""
            mid, low, high = np.median(rates[side]), rates[side].min(), rates[side].max()
            step, first = (1e3 * np.median([x[name] for x in one]) for name in ("step", "first"))
            same = np.mean([a == b for a, b in pairs])
            times = f"{mid:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{step:.2f}", f"{first:.0f}"
            lines.append(f"| {' | '.join((task['size'], count, side, *times, share, f'{same:.0%}'))} |")
        for bits in dict.fromkeys(bits for bits, _ in SIDES.values()):
            mine = f"ours {bits}"
            for whose in dict.fromkeys(whose for _, whose in SIDES.values() if whose != "ours"):
                ways = [side for side in sides if SIDES[side] == (bits, whose)]
                if mine in rates and ways:
                    way = max(ways, key=lambda side: float(np.median(rates[side])))
                    ratio = rates[mine] / rates[way]
                    ratios.append(
                        f"| {task['size']} | {count} | {mine} / {way} | {np.median(ratio):.2f} | {ratio.min():.2f}-{ratio.max():.2f} |"
                    )
    return [*lines, "", "| model | requests | ours / peer's best way | ratio | min-max |", "|---" * 5 + "|", *ratios]


def main() -> None:
    """Measure what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["S", "M"], choices=list(SHAPES))
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--bits", nargs="+", default=["fp32", "int8", *(["bf16"] if has_bf16() else [])], choices=list(BYTES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--llama", default="", help="folder of llama-cpp-python")
    parser.add_argument("--skip", nargs="*", default=[], help="sides whose name holds one of these")
    parser.add_argument("--only", nargs="*", default=[], help="only these sides")
    parser.add_argument("--quick", action="store_true", help="S, 1 and 2 requests of 16 new tokens, once: only shows that it runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    sizes, repeats, requests, new = (["S"], 1, [1, 2], 16) if args.quick else (args.sizes, args.repeats, args.requests, NEW)
    sides = [side for side, (bits, _) in SIDES.items() if bits in args.bits and not any(word in side for word in args.skip)]
    sides = [side for side in sides if not args.only or side in args.only]
    sys.path[:0] = [args.llama] if args.llama else []
    try:
        import llama_cpp as _  # noqa: F401
    except ImportError:
        sides = [side for side in sides if SIDES[side][1] != "llama.cpp"]
        print("llama-cpp-python is not installed: left out (--llama FOLDER)\n")
    print(f"{date.today()}, {args.threads} threads, {repeats} repeats, prompts of {PROMPT} tokens, {new} new ones\n")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            process = multiprocessing.get_context("spawn").Process(target=prepare_all, args=(Path(folder), size))
            process.start()
            process.join()
            task = {"size": size, "folder": folder, "threads": args.threads, "requests": requests, "new": new, "llama": args.llama}
            print("| model | requests | side | tokens/s | min-max | step, ms | prompts, ms | of bandwidth | first 16 ids as ours |")
            print("|---" * 9 + "|\n" + "\n".join(compare(task, sides, repeats)) + "\n", flush=True)


if __name__ == "__main__":
    main()
