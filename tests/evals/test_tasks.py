"""lm-evaluation-harness on our engine: the same figures as its own `hf` model, tasks from local files, results with errors."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_model
from trueline.cli import main
from trueline.records import Sample, Sampling

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

TEXTS = [
    "Question: How many apples are there? Answer: There are three apples and a pear.\n",
    "the cat sat on the mat; naïve — café\n",
]
CONTEXT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tasks") / "tiny", TEXTS * 20, context=CONTEXT)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    from rich.console import Console

    from trueline.cli.tasks import harness_model

    return harness_model(str(folder), "cpu", Console(quiet=True))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with two small files of the kind that the task files read."""
    monkeypatch.setenv("TRUELINE_DATA", str(tmp_path))
    (tmp_path / "eval").mkdir()
    choices = [
        {"question": f"How many apples, {n}?", "choices": ["three apples", "a pear"], "gold": n % 2} for n in range(8)
    ]
    sums = [{"Body": f"Ann has {n} pears", "Question": "How many?", "Answer": float(n), "ID": str(n)} for n in range(3)]
    for name, rows in (("piqa_val", choices), ("svamp", sums)):
        with gzip.open(tmp_path / "eval" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=number) for number, one in enumerate(arguments)]


LIKELIHOODS = [
    ("Question: How many apples", " are there?"), ("Question: How many apples", " is it"), ("Question: How many apples", " are there?"),
    ("", "There are three apples"), ("the cat ", "sat on the mat"), ("naïve", " — café"),
    ("There are three apples. " * 9, "a pear and a pear"),
    ("the mat<|im_end|>", " the"), ("a", "b" * (CONTEXT + 30)),
]  # fmt: skip
ROLLING = [("the cat sat on the mat",), ("There are three apples and a pear. " * 12,), ("x",)]


@pytest.mark.slow
@pytest.mark.sample
def test_figures_are_those_of_the_hf_model(folder: Path, ours: Any) -> None:
    """Equal log-likelihoods to 1e-4 and equal greedy flags, with contexts shared, empty and cut, and special tokens in the text."""
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3)
    greedy = greedy_pair(ours, "Question: How many apples")
    requests = asked("loglikelihood", *LIKELIHOODS[:-1], greedy)
    expected, found = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    np.testing.assert_allclose([logp for logp, _ in found], [logp for logp, _ in expected], atol=1e-4)
    assert (
        [hit for _, hit in found] == [hit for _, hit in expected] and found[-1][1] and not all(hit for _, hit in found)
    )
    assert ours.cut == 1
    requests = asked("loglikelihood_rolling", *ROLLING)
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests, disable_tqdm=True), atol=1e-4
    )
    requests = asked(
        "generate_until",
        *((text, {"until": ["\n\n", "q"], "max_gen_toks": 12}) for text in ("the cat", "There are three apples. " * 9)),
    )
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


def greedy_pair(ours: Any, context: str) -> tuple[str, str]:
    """A context and what the model itself would say after it, as a text that is spelled by the same ids."""
    tokenizer = ours.tokenizer
    for length in range(1, 8):
        ((sample,),) = ours.parts.sample(
            [tokenizer.encode(context)], Sampling(temperature=0, max_new_tokens=length, stop_ids=(0,))
        )
        text = tokenizer.decode(sample.ids.tolist())
        if tokenizer.encode(context + text) == tokenizer.encode(context) + sample.ids.tolist():
            return context, text
    raise AssertionError("no greedy continuation survives its own spelling")


def test_a_continuation_that_does_not_fit_is_refused(ours: Any) -> None:
    with pytest.raises(ValueError, match="does not fit the model's context of 48"):
        ours.loglikelihood(asked("loglikelihood", LIKELIHOODS[-1]))


def test_what_a_task_asks_becomes_sampling(ours: Any) -> None:
    end = ours.tokenizer.control["<|im_end|>"]
    plain = ours._sampling({"until": ["\n\n", "<|im_end|>"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0})
    assert plain.temperature == 0 and plain.stop == ("\n\n",) and end in plain.stop_ids and plain.max_new_tokens == 9
    drawn = ours._sampling({"until": "x", "max_gen_toks": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (drawn.temperature, drawn.top_p, drawn.stop) == (0.7, 0.9, ("x",))
    with pytest.raises(ValueError, match="typical_p in its generation_kwargs"):
        ours._sampling({"typical_p": 1})
    with pytest.raises(ValueError, match="asks for 48 new tokens"):
        ours._sampling({"max_gen_toks": CONTEXT})


def test_the_verb_prints_and_writes(
    data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, samples = tmp_path / "r.json", tmp_path / "s.jsonl"
    words = ["eval", folder, "--tasks", "local_piqa", "--out", out, "--samples", samples]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert "local_piqa" in said.out and "±" in said.out and "acc_norm" in said.out and "it/s" not in said.err
    results = json.loads(out.read_text(encoding="utf-8"))
    accuracy = next(one for one in results["results"] if one["metric"] == "acc")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    share = float(np.mean([row["acc"] for row in rows]))
    assert len(rows) == 8 == accuracy["n"] and accuracy["value"] == share
    assert accuracy["error"] == pytest.approx(np.sqrt(share * (1 - share) / 7))


def test_numbers_are_read_out_of_responses(data: Path, ours: Any) -> None:
    """With a model that says what we want: the last number counts, thousands' commas and final points do not."""
    from trueline.evals.tasks.harness import manager, measure
    from trueline.evals.tasks.model import HarnessModel

    def draw(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Sample]]:
        assert sampling.temperature == 0 and sampling.max_new_tokens == 128
        return ours.parts.sample([[5]] * len(prompts), Sampling(max_new_tokens=1))

    said = iter(["First 9, then 0.", "1,0", "so 7 and 2.0"])
    model = HarnessModel(replace(ours.parts, context=1000, sample=draw, text=lambda sample, stop: next(said)))
    found = measure(model, ["local_svamp"], manager(["local_svamp"], ()))
    assert found.results[0].value == pytest.approx(2 / 3)
    prompts = [row["arguments"][0][0] for row in found.samples["local_svamp"]]
    assert prompts[1] == "Question: Ann has 1 pears. How many?\nAnswer:"


def test_the_error_of_a_likelihood_per_byte() -> None:
    """Against resampling the documents many times."""
    from trueline.evals.tasks.harness import _error

    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 400, 300)
    logps = -sizes * (0.9 + 0.3 * rng.standard_normal(300))
    samples = [{"bits_per_byte": pair, "byte_perplexity": pair} for pair in zip(logps, sizes, strict=True)]
    picks = rng.integers(0, 300, (4000, 300))
    ratios = -logps[picks].sum(1) / sizes[picks].sum(1)
    assert _error("N/A", "bits_per_byte", 0, samples) == pytest.approx((ratios / np.log(2)).std(), rel=0.05)
    value = float(np.exp(-logps.sum() / sizes.sum()))
    assert _error("N/A", "byte_perplexity", value, samples) == pytest.approx(np.exp(ratios).std(), rel=0.05)
    assert _error("N/A", "exact_match", 0, samples) is None and _error(0.5, "acc", 0, samples) == 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tasks", "local_piqua"), "did you mean 'local_piqa'"),
        (("--tasks", "local_boolq"), "there is no"),
        (("--tasks", "local_piqa", "--num_fewshot", "x"), "write a whole number"),
        ((), "needs --data FILE_OR_HUB_ID ... or --tasks NAME"),
        (("--tasks", "local_piqa", "--data", "x.jsonl"), "and not both"),
        (("--tasks", "local_piqa", "--model", "elsewhere"), "two models are named"),
        (("--tasks", "local_piqa", "--include_path", "nowhere"), "nowhere is no folder"),
    ],
)
def test_mistakes(
    data: Path, folder: Path, words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder), *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_without_the_variable_a_task_says_what_to_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRUELINE_DATA", raising=False)
    assert main(["eval", str(folder), "--tasks", "local_piqa"]) == 2
    assert "the variable TRUELINE_DATA names, and it is not set" in capsys.readouterr().err


def test_every_task_file_of_ours_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the real files, where they are: prompts and targets as they should look."""
    from trueline.evals.tasks.harness import FOLDER, manager

    if not os.environ.get("TRUELINE_DATA"):
        pytest.skip("TRUELINE_DATA names no folder of data sets")
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    tasks = manager(names, ()).load(names)["tasks"]
    assert sorted(tasks) == names and len(names) == 12
    for name, task in tasks.items():
        doc = next(iter(task.test_docs()))
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        assert "{{" not in f"{text}{target}", name
        if task.config.output_type == "multiple_choice":
            choices = task.doc_to_choice(doc)
            assert len(choices) >= 2 and all(isinstance(one, str) and one for one in choices)
    shots = tasks["local_mmlu_5shot"]
    doc = next(iter(shots.test_docs()))
    assert shots.doc_to_text(doc).count("Answer:") == 6 and shots.doc_to_text(doc).endswith("\nAnswer:")
    assert (
        tasks["local_winogrande"].doc_to_target(next(iter(tasks["local_winogrande"].test_docs())))
        == "always got the easier cases."
    )
