"""Models on disk as Hugging Face lays them out: config.json, generation_config.json, model.safetensors or its shards.

    new_model(config, seed)   load_model(path or hub id)   save_model(model, dir)
    load_scalar_model(path or hub id)                      reward models, stored as sequence classifiers of one or C labels

Only safetensors are read: pickled weights can run code. Names and shapes are checked against the config before
anything is allocated, and the files' own headers before that (header.py). Names and layouts are each family's
(families/): what a family stores as one matrix is split here and joined again. Left out: tokenizer files
(trueline.tokens copies them), adapters (adapter_files), quantised weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.families import architecture_of, named
from trueline.models.families.weights import Group, groups, stored_name
from trueline.models.header import FLOATS, Stored, read_header
from trueline.models.lora import LoRALinear
from trueline.store import ADAPTER_CONFIG, adapter_base, local_folder, write_atomic


def new_model(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder with random weights: normal with `initializer_range`, norms 1, biases 0, as transformers does."""
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=config.initializer_range, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def save_model(model: Decoder | ScalarModel, folder: str | Path, *, max_shard_bytes: int = 5 << 30) -> Path:
    """Writes the model; transformers reads it with AutoModelForCausalLM or AutoModelForSequenceClassification.

    A classifier needs config.pad_token_id there to score a padded batch; it must not be a token that ends sequences.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError(f"{folder}: the model has adapters: merge them first, or save them alone with save_adapter")
    folder = Path(folder)
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    head, c = "scalar" if isinstance(model, ScalarModel) else "tokens", decoder.config
    raw = c.to_hf(head=head, dtype=next(model.parameters()).dtype)
    raw |= _head_keys(model) if isinstance(model, ScalarModel) else {}
    _refuse_other_weights(decoder, DecoderConfig.from_hf(raw))
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", raw)
    ids = {"bos_token_id": c.bos_token_id, "eos_token_id": c.to_hf()["eos_token_id"], "pad_token_id": c.pad_token_id}
    _write_json(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    state = model.state_dict()
    stored: dict[str, Tensor] = {}
    for group in _groups(model):
        stored |= zip(group.stored, group.join([state[name] for name in group.ours]), strict=True)
    _write_tensors(folder, stored, max_shard_bytes)
    return folder


def _refuse_other_weights(decoder: Decoder, read_back: DecoderConfig) -> None:
    """A config made in Python may name a family that has other weights: its folder could not be loaded again."""
    with torch.device("meta"):
        again = Decoder(read_back)
    names = {name for name, _ in decoder.named_parameters()} ^ {name for name, _ in again.named_parameters()}
    names -= {"lm_head.weight"}  # a classifier has none
    if names:
        raise ValueError(
            f"{min(names)} is a weight of this model or of a {read_back.model_type} model, not of both: give DecoderConfig the "
            "model_type that it describes (qwen3 has qk_norm, qwen2 has qkv_bias, llama has neither)"
        )


def load_model(source: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Decoder:
    """Reads a Hugging Face directory, or a hub id when no such directory exists; of an adapter, its base with it."""
    folder = local_folder(source)
    config, classifier = read_config(folder)
    if classifier:
        raise ValueError(
            f"{folder}: a sequence classifier (reward model), not a language model; use load_scalar_model."
        )
    if adapter_base(folder):
        return adapter_files().load_adapted(folder, "tokens", dtype=dtype, device=device)
    found = _found(folder, config)
    with torch.device("meta"):
        model = Decoder(config, str(folder))
    _fill(model, folder, found, dtype, device)
    return model


def load_scalar_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    pad_token_id: int | None = None,
    seed: int = 0,
    labels: int | None = None,
) -> ScalarModel:
    """Reads a sequence classifier, or starts one from a language model.

    A new score is random (normal with `initializer_range`). `pad_token_id` fills in a config that has none. `labels` is how many
    the head must have, default 1 for a new one; several stored ones need `utilities` in config.json.
    """
    folder = local_folder(source)
    config, classifier = read_config(folder)
    if config.pad_token_id is None and pad_token_id is not None:
        config = replace(config, pad_token_id=pad_token_id)
    if not classifier:
        decoder = load_model(folder, dtype=dtype, device=device)
        if not config.tie_word_embeddings:
            del decoder.lm_head
        decoder.config = replace(config, tie_word_embeddings=True)  # a classifier has no output head of its own
        model = ScalarModel(decoder, labels or 1)
        nn.init.normal_(model.score.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))
        model.score.to(device=device, dtype=dtype)
        return model
    if adapter_base(folder):
        model = adapter_files().load_adapted(
            folder, "scalar", dtype=dtype, device=device, pad_token_id=pad_token_id, seed=seed, labels=labels
        )
        model.reward_shift = 0.0  # the base's was measured without the adapter
        return model
    found = _found(folder, config)
    score = found.get("score.weight")
    stored = score.shape[0] if score is not None and len(score.shape) == 2 else 1
    if labels not in (None, stored):
        raise ValueError(f"{folder}: a classifier of {stored} labels, and {labels} are wanted: start from a language model.")
    with torch.device("meta"):
        model = ScalarModel(Decoder(replace(config, tie_word_embeddings=True), str(folder)), stored)
    _read_head(model, folder / "config.json")
    _fill(model, folder, found, dtype, device)
    return model


def _head_keys(model: ScalarModel) -> dict[str, Any]:
    """What config.json says of a reward model's head; transformers reads the labels and leaves the rest alone."""
    names = [f"LABEL_{i}" for i in range(model.labels)]
    keys: dict[str, Any] = {"num_labels": model.labels, "id2label": {str(i): name for i, name in enumerate(names)}}
    keys["label2id"] = {name: i for i, name in enumerate(names)}
    keys |= {"utilities": list(model.utilities)} if model.labels > 1 else {}
    return keys | ({"reward_shift": model.reward_shift} if model.reward_shift else {})


def _read_head(model: ScalarModel, path: Path) -> None:
    """The same, read back."""
    raw = _json(path)
    given, shift = raw.get("utilities"), raw.get("reward_shift", 0.0)
    values = given if isinstance(given, list) and model.labels > 1 else []
    if not all(type(x) in (int, float) and math.isfinite(x) for x in (*values, shift)):
        raise ValueError(f"{path}: utilities and reward_shift should be finite numbers.")
    if model.labels > 1 and (len(values) != model.labels or sorted(values) != values):
        raise ValueError(
            f"{path}: a classifier of {model.labels} labels is a reward model where `utilities` says what each is worth, worst "
            f"first: {model.labels} numbers that do not fall."
        )
    model.utilities, model.reward_shift = tuple(map(float, values)), float(shift)


def hf_name(name: str, model_type: str = "llama") -> str:
    """The stored name of a parameter of a Decoder or a ScalarModel, where the family stores it on its own."""
    return stored_name(named(model_type), name)


def adapter_files() -> Any:
    """The room of adapters on disk, which is built on this one."""
    from trueline.models import adapter_files

    return adapter_files


def read_config(folder: Path) -> tuple[DecoderConfig, bool]:
    """The config, and whether it is a sequence classifier's."""
    path, base = folder / "config.json", adapter_base(folder)
    if base:
        task = _json(folder / ADAPTER_CONFIG).get("task_type")
        below = local_folder(base, "config", f"{folder / ADAPTER_CONFIG} names the base model ")
        if adapter_base(below):
            raise ValueError(f"{folder}: its base model {base} is an adapter too: merge that one first (trueline merge)")
        config, classifier = read_config(below)
        return config, classifier or task == "SEQ_CLS"
    if not path.is_file():
        raise ValueError(f"{folder}: config.json is missing; a model directory has config.json and model.safetensors.")
    raw = _json(path)
    config = DecoderConfig.from_hf(raw, str(path))
    return config, (architecture_of(raw) or "").endswith("ForSequenceClassification")


def _groups(model: Decoder | ScalarModel) -> list[Group]:
    config = model.decoder.config if isinstance(model, ScalarModel) else model.config
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return list(groups(named(config.model_type), shapes, config.num_attention_heads))


def _found(folder: Path, config: DecoderConfig) -> dict[str, Stored]:
    """What the files hold, by today's names; less masks and the like."""
    family = named(config.model_type)
    found: dict[str, Stored] = {}
    for path in _files(folder):
        for name, stored in read_header(path).items():
            if not re.search(r"rotary_emb\.inv_freq$" + family.ignored, name):
                for old, new in family.old_names:
                    name = re.sub(old, new, name)
                found[name] = stored
    if config.num_hidden_layers > len(found):  # before a module per layer is made
        raise ValueError(
            f"{folder}: config.json says num_hidden_layers = {config.num_hidden_layers:,}, and the weights are "
            f"{len(found)} tensors."
        )
    largest = max((size for stored in found.values() for size in stored.shape), default=0)
    heads = {"num_attention_heads": config.num_attention_heads * config.head_dim}
    positions = {"max_position_embeddings": config.max_position_embeddings} if config.learned_positions else {}
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")} | heads | positions
    for name, size in sizes.items():
        if size > largest:  # torch would overflow, even where nothing is allocated
            raise ValueError(
                f"{folder}: {name} of config.json asks for a matrix with {size:,} rows or columns, and the weights' largest has "
                f"{largest:,}."
            )
    return found


def _fill(
    model: Decoder | ScalarModel, folder: Path, found: dict[str, Stored], dtype: torch.dtype, device: str
) -> None:
    """Gives a model on the meta device its stored tensors."""
    parts = _groups(model)
    wanted = {name: shape for group in parts for name, shape in group.shapes().items()}
    spare = {"lm_head.weight"} - wanted.keys()
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys() - spare)
    both = sorted(wanted.keys() & found.keys())
    wrong = [
        f"{k} is {list(found[k].shape)} and should be {list(wanted[k])}" for k in both if found[k].shape != wanted[k]
    ]
    kinds = [f"{k} is stored as {found[k].dtype}" for k in both if found[k].dtype not in FLOATS]
    problems = (("lacks", missing), ("has unexpected", extra), ("has wrong shapes:", wrong), ("has no weights:", kinds))
    for problem, names_of in problems:
        if names_of:
            more = f" and {len(names_of) - 3} more" if len(names_of) > 3 else ""
            raise ValueError(
                f"{folder}: the weights do not fit config.json: it {problem} {', '.join(names_of[:3])}{more}."
            )
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        paths = {stored.path for stored in found.values()}
        files = {path: stack.enter_context(safe_open(str(path), framework="pt", device=device)) for path in paths}
        for group in parts:
            stored = [files[found[name].path].get_tensor(found[name].name) for name in group.stored]
            for name, tensor in zip(group.ours, group.split(stored), strict=True):
                # not a map of the file, which may be overwritten
                tensors[name] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(True)


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and values: the same for the same weights on any machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(n, str) and Path(n).name == n for n in shards.values()):
            raise ValueError(f"{index}: weight_map should name files of this folder.")
        names = sorted(set(shards.values()))
        gone = [n for n in names if not (folder / n).is_file()]
        if gone:
            raise ValueError(f"{index}: the shard {gone[0]} is missing; download it again.")
        return [folder / n for n in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ValueError(f"{folder}: only pickled weights (.bin), which can run code; save them again as safetensors.")
    raise ValueError(f"{folder}: model.safetensors is missing.")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: fetch or write it again.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON (line {error.lineno}): fetch or write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold an object, {{...}}: fetch or write it again.")
    return found


def _write_tensors(folder: Path, tensors: dict[str, Tensor], max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        count = tensor.numel() * tensor.element_size()
        if size and size + count > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += count
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if len(shards) == 1:
        _write_shard(shards[0], single)
        index.unlink(missing_ok=True)  # of a sharded model that was here before: readers would follow it
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    _write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    single.unlink(missing_ok=True)  # transformers would prefer it


def _write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_tensors(tensors, part)
    os.replace(part, path)  # a reader, or a model loaded from this very file, never sees half of it


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that is on disk when this returns, with the permissions that any new file has."""
    path.touch()
    usual = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(usual)  # the library makes files that only their owner reads
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")
