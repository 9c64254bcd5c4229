"""Whatever a model folder, a tokenizer, a chat template or a run folder holds: it works, or one sentence says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import JSON, SAMPLE, SOAK, mutated, sentence_or_nothing
from trueline.models.config import DecoderConfig
from trueline.models.files import load_model, new_model, save_model
from trueline.records import Conversation, Message
from trueline.run import Run, read_json, read_lines
from trueline.tokens import EncodeStats, encode_conversation, load_tokenizer, train_tokenizer
from trueline.tokens.tokenizer import Tokenizer
from trueline.train.checkpoint import is_complete, load_checkpoint, save_checkpoint
from trueline.train.config import OptimConfig
from trueline.train.optim import adamw
from trueline.train.state import TrainState

SHAPE = DecoderConfig(
    model_type="qwen3", vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, qk_norm=True, tie_word_embeddings=True, pad_token_id=3, eos_token_id=0,
)  # fmt: skip
CHAT = Conversation(
    messages=(Message(role="user", content="Hi there", train=False), Message(role="assistant", content="Hello."))
)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and in it a checkpoint and the files of a run."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    model = new_model(SHAPE, 0)
    save_model(model, folder)
    train_tokenizer(["Hi there", "Hello."] * 9, vocab_size=262).save(folder)
    optimizer = adamw(model, OptimConfig())
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    save_checkpoint(folder, model, optimizer, TrainState(step=1), {"given": 8}, lambda live, to: save_model(live, to))  # type: ignore[arg-type]
    with Run(folder / "run", {"a": 1}, total=3) as run:
        run.log(1, {"loss": 1.0})
        run.event("begun")
    return folder


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
         "chat_template.jinja", "special_tokens_map.json")  # fmt: skip


def load_everything(folder: Path) -> None:
    """What training does with a model folder."""
    load_model(folder)
    use(load_tokenizer(folder))


def use(tokenizer: Tokenizer) -> None:
    encode_conversation(CHAT, tokenizer, 64, EncodeStats())
    assert isinstance(tokenizer.stop_ids, tuple)


def check_folder(name: str, data: bytes, whole: Path, spot: Path) -> None:
    folder = spot / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(data)
    sentence_or_nothing(lambda: load_everything(folder))


def damaged(names: tuple[str, ...], folder: Path, data: st.DataObject) -> tuple[str, bytes]:
    """One of the files, its bytes mutated, or, where it is JSON, one of its values replaced."""
    name = data.draw(st.sampled_from(names))
    before = (folder / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        found = json.loads(before)
        found[data.draw(st.sampled_from(sorted(found)))] = data.draw(JSON)
        return name, json.dumps(found).encode()
    return name, data.draw(mutated(before))


@SAMPLE
@given(data=st.data())
def test_damaged_model_folders(data: st.DataObject, whole: Path, spot: Path) -> None:
    check_folder(*damaged(FILES, whole, data), whole, spot)


@pytest.mark.slow
@SOAK
@given(data=st.data())
def test_damaged_model_folders_soak(data: st.DataObject, whole: Path, spot: Path) -> None:
    check_folder(*damaged(FILES, whole, data), whole, spot)


PIECES = ("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "<|im_end|>", "{% if add_generation_prompt %}",
          "{% endif %}", "{% generation %}", "{% endgeneration %}", "{{ messages[5].content }}", "{{ 1/0 }}", "{{ x.y.z }}",
          "{{ raise_exception('no') }}", "{% set a = messages[0] %}", "{{ messages | tojson }}", "{% break %}", "{{ strftime_now(3) }}",
          "{% macro f() %}{{ f() }}{% endmacro %}", "{{ f() }}", "{% include 'x' %}", "{{ m.content | int + m }}", "\n", "a")  # fmt: skip


def check_template(source: str, whole: Path) -> None:
    sentence_or_nothing(lambda: use(load_tokenizer(whole).with_template(source)))


TEMPLATES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join)


@SAMPLE
@given(source=TEMPLATES)
def test_strange_templates(source: str, whole: Path) -> None:
    check_template(source, whole)


@pytest.mark.slow
@SOAK
@given(source=TEMPLATES)
def test_strange_templates_soak(source: str, whole: Path) -> None:
    check_template(source, whole)


STATE = ("trainer_state.json", "optimizer.safetensors", "rng.safetensors", "complete.json")


def check_checkpoint(name: str, data: bytes, whole: Path, spot: Path) -> None:
    """A damaged checkpoint is known by its hashes. One whose hashes fit (here: that is read all the same) says what it lacks."""
    folder = spot / "checkpoint-1"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "checkpoint-1", folder)
    unchanged = (folder / name).read_bytes() == data
    (folder / name).write_bytes(data)
    assert is_complete(folder) is unchanged or name == "complete.json"
    model = new_model(SHAPE, 0)
    sentence_or_nothing(lambda: load_checkpoint(folder, model, adamw(model, OptimConfig())))


@SAMPLE
@given(data=st.data())
def test_damaged_checkpoints(data: st.DataObject, whole: Path, spot: Path) -> None:
    check_checkpoint(*damaged(STATE, whole / "checkpoint-1", data), whole, spot)


@pytest.mark.slow
@SOAK
@given(data=st.data())
def test_damaged_checkpoints_soak(data: st.DataObject, whole: Path, spot: Path) -> None:
    check_checkpoint(*damaged(STATE, whole / "checkpoint-1", data), whole, spot)


@SAMPLE
@given(data=st.data())
def test_damaged_runs(data: st.DataObject, whole: Path, spot: Path) -> None:
    """run.json and the lines of a run."""
    name, content = damaged(("run.json", "environment.json", "metrics.jsonl", "events.jsonl"), whole / "run", data)
    folder = spot / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / "run", folder)
    (folder / name).write_bytes(content)

    def resume() -> None:
        with Run(folder, {"a": 1}, total=3) as run:
            run.truncate(0)
        read_lines(folder / "metrics.jsonl")
        read_json(folder / "run.json")

    sentence_or_nothing(resume)
