"""What stages leave on disk for one another: artifacts with a name, a version, parents, a config and a fingerprint.

    store = Store("work")
    base = store.put("base", "tiny", lambda folder: save(model, folder), config={"seed": 1})      # work/base/tiny@1/
    sft = store.put("sft", "tiny", write_sft, parents=[base], config={"learning_rate": 1e-5})      # work/sft/tiny@1/
    store.get("sft/tiny")                    # the newest complete version; "sft/tiny@1" names one
    store.lineage(sft)                       # [base/tiny@1, sft/tiny@1]

An artifact exists once its `artifact.json` does; that file is written last, so what a crash leaves behind is invisible.
Left out: deletion, remote stores, deduplication of content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

MARKER = "artifact.json"
ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a folder an adapter, in PEFT's layout."""


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write the whole file or nothing: after a crash the path holds the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # same folder: a rename must not cross file systems
    try:
        with open(temporary, "xb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Make renames and new names inside a folder durable. Windows has no such call and needs none."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def canonical_json(obj: Any) -> str:
    """One text per value: keys sorted, no spaces, 1.0 as 1, tuples as lists, dataclasses as objects, paths as text."""
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(obj: Any) -> Any:
    match obj:
        case None | bool() | str() | int():
            return obj
        case float():
            if not math.isfinite(obj):
                raise ValueError(f"{obj} has no place in a fingerprint; use null or a finite number")
            return int(obj) if obj.is_integer() else obj
        case Path():
            return obj.as_posix()
        case np.generic() | np.ndarray():
            return _plain(obj.tolist())
        case Mapping():
            return {str(key): _plain(value) for key, value in obj.items()}
        case set() | frozenset():
            return sorted((_plain(value) for value in obj), key=canonical_json)
        case list() | tuple():
            return [_plain(value) for value in obj]
    if is_dataclass(obj) and not isinstance(obj, type):
        return _plain(asdict(obj))
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON")


def fingerprint(obj: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(obj).encode("utf-8")).hexdigest()


def file_fingerprint(path: str | Path) -> str:
    """sha256 (hex) of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_fingerprint(path: str | Path) -> str:
    """sha256 (hex) over names and contents of all files below a folder. The store's own marker is not content."""
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file() and file != root / MARKER)
    return fingerprint({file.relative_to(root).as_posix(): file_fingerprint(file) for file in files})


FILES: dict[str, tuple[str, ...]] = {
    "model": ("*.json", "*.safetensors", "*.jinja", "tokenizer.model"),
    "config": ("config.json", ADAPTER_CONFIG),
    "tokenizer": ("tokenizer*", "special_tokens_map.json", "chat_template*", "generation_config.json", ADAPTER_CONFIG),
}
"""What is fetched from the hub, by what it is for; the first includes the others."""


def local_folder(name: str | Path, what: str = "model", where: str = "") -> Path:
    """The folder of a model: the one of that name, or the hub's download of the FILES that `what` names.

    `where` begins the sentence (ValueError) when there is none.
    """
    if Path(name).is_dir():
        return Path(name)
    name = str(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{where}{name}: no such directory, and not a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES[what])))
    except (OSError, ValueError) as error:  # offline, unknown name, no access, a name the hub does not allow
        raise ValueError(
            f"{where}{name}: no such directory, and the hub did not give a {what} of that name ({type(error).__name__}): "
            "check the path, or the name and the network."
        ) from error


def adapter_base(folder: str | Path) -> str:
    """The folder or hub id of the base model of an adapter's folder; "" for any other folder.

    A relative path counts from where the program runs, as for PEFT, or else from the adapter's folder.
    """
    folder = Path(folder)
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or (folder / "config.json").is_file():  # beside its own weights an adapter is a leftover
        return ""
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path} is not valid JSON: fetch or write it again") from None
    if not named or not isinstance(named, str):
        raise ValueError(f"{path} names no base model: write its folder or hub id as base_model_name_or_path")
    return str(folder / named) if not Path(named).is_dir() and (folder / named).is_dir() else str(named)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished folder in the store."""

    kind: str
    name: str
    version: int
    path: Path
    fingerprint: str
    """Of the content: names and bytes of its files."""
    parents: tuple[str, ...] = ()
    """References (kind/name@version) of what it was made from."""
    config: Mapping[str, Any] = field(default_factory=dict)
    time: str = ""

    @property
    def reference(self) -> str:
        return f"{self.kind}/{self.name}@{self.version}"


class Store:
    """Artifacts under one root folder: root/kind/name@version/."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def put(
        self,
        kind: str,
        name: str,
        write: Callable[[Path], None],
        *,
        parents: Sequence[Artifact | str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Let `write` fill a fresh folder, then seal it. Two processes that put one name get different versions."""
        for word in (kind, name):
            if not re.fullmatch(r"\w[\w.-]*", word):
                raise ValueError(f"artifact name {word!r}: use letters, digits, '_', '-' and '.' only")
        references = tuple(p.reference if isinstance(p, Artifact) else self.get(p).reference for p in parents)
        version, path = self._claim(kind, name)
        try:
            write(path)
        except BaseException:
            shutil.rmtree(path)
            raise
        artifact = Artifact(
            kind=kind,
            name=name,
            version=version,
            path=path,
            fingerprint=directory_fingerprint(path),
            parents=references,
            config=dict(config or {}),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        marker = {key: value for key, value in asdict(artifact).items() if key != "path"}
        write_atomic(path / MARKER, canonical_json(marker))
        sync_directory(path.parent)
        return artifact

    def get(self, reference: str) -> Artifact:
        """The artifact "kind/name@version", or the newest complete version of "kind/name"."""
        found = re.fullmatch(r"(\w[\w.-]*)/(\w[\w.-]*?)(?:@(\d+))?", reference)
        if not found:
            raise ValueError(f"{reference!r} does not name an artifact: write kind/name or kind/name@version")
        kind, name, version = found.groups()
        complete = [v for v in self._versions(kind, name) if (self._folder(kind, name, v) / MARKER).is_file()]
        if not complete or (version and int(version) not in complete):
            known = ", ".join(f"{kind}/{name}@{v}" for v in complete) or "none of that name"
            raise ValueError(f"{self.root} has no complete artifact {reference!r}; it has {known}")
        return self._read(self._folder(kind, name, int(version) if version else max(complete)))

    def lineage(self, artifact: Artifact | str) -> list[Artifact]:
        """The artifact and all it was made from, oldest first, each once."""
        found: dict[str, Artifact] = {}

        def visit(one: Artifact) -> None:
            for parent in one.parents:
                if parent not in found:
                    visit(self.get(parent))
            found[one.reference] = one

        visit(artifact if isinstance(artifact, Artifact) else self.get(artifact))
        return list(found.values())

    def _folder(self, kind: str, name: str, version: int) -> Path:
        return self.root / kind / f"{name}@{version}"

    def _versions(self, kind: str, name: str) -> list[int]:
        folder = self.root / kind
        names = (re.fullmatch(re.escape(name) + r"@(\d+)", child.name) for child in folder.glob(f"{name}@*"))
        return sorted(int(match.group(1)) for match in names if match)

    def _claim(self, kind: str, name: str) -> tuple[int, Path]:
        """Take the next version by creating its folder, which only one process can do."""
        version = max(self._versions(kind, name), default=0) + 1
        while True:
            path = self._folder(kind, name, version)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                version += 1
            else:
                return version, path

    def _read(self, path: Path) -> Artifact:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return Artifact(**{**marker, "parents": tuple(marker["parents"])}, path=path)
