"""The rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import trueline

PACKAGE = Path(trueline.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(path for folder in ("trueline", "recipes", "bench") for path in (ROOT / folder).rglob("*.py"))
SHORT = 8
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_doors() -> None:
    """The import contracts of pyproject.toml hold."""
    program = Path(sys.executable).with_name("lint-imports")
    found = str(program) if program.exists() else shutil.which("lint-imports")
    assert found, "import-linter is not installed: make setup"
    done = subprocess.run([found], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_doors_can_close(tmp_path: Path) -> None:
    """A room that imports upwards is caught: the contracts are not empty words."""
    copy = tmp_path / "trueline"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "base"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room, line in {
        "records.py": "import torch",
        "store.py": "import trueline.run",
        "train/api.py": "import trueline.serve.engine",
    }.items():
        with open(copy / room, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(program), "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    for broken in (
        "trueline.records -> torch",
        "trueline.store -> trueline.run",
        "trueline.train.api -> trueline.serve.engine",
    ):
        assert broken in done.stdout, done.stdout


@pytest.mark.parametrize(
    "module",
    ["trueline", "trueline.records", "trueline.protocols", "trueline.store", "trueline.run", "trueline.rows", "trueline.tokens",
     "trueline.align", "trueline.evals", "trueline.serve.schedule"],
)  # fmt: skip
def test_torch_free(module: str) -> None:
    """Every module of a torch-free room leaves torch and transformers out of sys.modules."""
    room = PACKAGE.joinpath(*module.split(".")[1:])
    inside = (
        [f"{module}.{info.name}" for info in pkgutil.iter_modules([str(room)])]
        if room.is_dir() and module != "trueline"
        else []
    )
    imports = "; ".join(f"import {one}" for one in [module, *inside])
    check = "import sys; heavy = {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_budgets_are_held() -> None:
    """A file is one noun, at most 400 lines; the loop and the objectives have budgets of their own."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("budgets.py"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_say_what_they_are() -> None:
    """Modules that hold code have a docstring, and so has every public class and every public function but the shortest."""
    missing = [name(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno < SHORT:
                continue  # a few lines under a telling name
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                missing.append(f"{name(path)}:{node.lineno} {node.name}")  # type: ignore[attr-defined]
    assert not missing, "\n".join(["no docstring:", *missing])


def offences(check: Callable[[ast.AST], str | None]) -> list[str]:
    """file:line and what is wrong there, over all our code."""
    return [
        f"{name(path)}:{getattr(node, 'lineno', 0)} {wrong}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if (wrong := check(node)) is not None
    ]


def unsafe(node: ast.AST) -> str | None:
    """Code that runs what it reads."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
        return next(iter(names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}), None)
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in ("torch.load", "torch.save", "eval", "exec", "os.system", "os.popen", "yaml.load", "compile"):
            return called
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if "trust_remote_code" in said or "True" in (said.get("shell"), said.get("allow_pickle")):
            return ast.unparse(node)
    return None


def test_nothing_is_unpickled_or_executed() -> None:
    """No pickle, torch.load, eval, exec, shell or remote code (SECURITY.md)."""
    assert not offences(unsafe)


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import loads", "torch.load(path)", "np.load(path, allow_pickle=True)", "eval(text)",
     "subprocess.run(words, shell=True)", "AutoModel.from_pretrained(name, trust_remote_code=flag)", "yaml.load(text)"],
)  # fmt: skip
def test_unsafe_code_would_be_found(code: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))


LOOKED_FOR = {"/proc/self/status", "/proc/self/maps", "/proc/cpuinfo"}
"""Read where it is a file, with another way where it is not."""


def one_system_only(node: ast.AST) -> str | None:
    """Code that works on some operating systems only, or depends on the user's locale."""
    if isinstance(node, ast.Attribute):
        said = ast.unparse(node)
        return said if said in ("os.fork", "signal.SIGKILL", "os.getuid", "os.uname", "os.sched_getaffinity") else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        there = node.value.startswith(tuple(f"/{root}/" for root in ("tmp", "home", "proc", "dev")))
        return node.value if there and node.value not in LOOKED_FOR else None
    if isinstance(node, ast.Call):
        names_encoding = any(keyword.arg == "encoding" for keyword in node.keywords)
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in ("read_text", "write_text")
            and not names_encoding
        ):
            return "name the encoding"
        if isinstance(node.func, ast.Name) and node.func.id == "open" and not names_encoding:
            given = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "mode"]
            mode = (given or [ast.unparse(argument) for argument in node.args[1:2]] or ["'r'"])[0]
            return None if "b" in mode else "name the encoding"
    return None


def test_nothing_assumes_linux() -> None:
    """os.fork, SIGKILL and /tmp exist on some systems only; text files name their encoding."""
    assert not offences(one_system_only)


def dataclasses_of(module: str) -> list[type]:
    things = vars(importlib.import_module(module)).values()
    return [
        thing
        for thing in things
        if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == module
    ]


def test_configs_are_small() -> None:
    """At most 15 fields in a config, all documented; at most 6 in an objective."""
    from trueline.objectives import discover

    configs = [*dataclasses_of("trueline.train.config")]
    for info in pkgutil.iter_modules([str(PACKAGE / "cli")]):
        configs += dataclasses_of(f"trueline.cli.{info.name}")
    assert len(configs) > 8
    for config in configs:
        assert len(dataclasses.fields(config)) <= 15, config
    for objective in discover().values():
        assert len(dataclasses.fields(objective)) <= 6, objective


def test_fields_of_configs_are_documented() -> None:
    """Each field of an options or config class has a docstring: it becomes the help text."""
    missing = []
    for path, tree in TREES.items():
        if path.parent.name not in ("cli", "objectives") and path != PACKAGE / "train" / "config.py":
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(
                "kw_only=True" in ast.unparse(mark) for mark in node.decorator_list
            ):
                for item, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
                        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        missing += [] if documented else [f"{name(path)}:{item.lineno} {ast.unparse(item.target)}"]
    assert not missing


def test_core_is_small() -> None:
    """At most 45 packages with torch: what the core needs is walked through the metadata of what is installed.
    The libraries that torch's CUDA build brings as packages are left out; its build for processors has none."""
    import re
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires, version

    hub = f"huggingface_hub=={version('huggingface_hub')}"  # older ones bring more packages
    if hub not in (ROOT / "constraints.txt").read_text():
        pytest.skip(f"the claim is about the versions of constraints.txt, and this is {hub}")
    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    seen: set[str] = set()
    queue = list(wanted)
    while queue:
        line = queue.pop()
        package = re.split(r"[\s\[(<>=!~;]", line, maxsplit=1)[0].lower().replace("_", "-")
        marker = line.partition(";")[2]
        foreign = any(
            word in marker for word in ("extra ==", "extra==", "win32", "Windows", "Darwin", 'python_version < "3.1')
        )
        if package in seen or foreign or package == "triton" or package.startswith(("nvidia-", "cuda-")):
            continue
        try:
            queue += requires(package) or []
        except PackageNotFoundError:
            continue
        seen.add(package)
    assert {"torch", "tokenizers", "tyro"} <= seen
    assert len(seen) <= 45, sorted(seen)


def test_lowest_versions_are_those_of_the_bounds() -> None:
    """`make lowest` tries what pyproject.toml promises: every lower bound stands in constraints-lowest.txt, and nothing else."""
    import tomllib

    def bare(line: str) -> tuple[str, tuple[int, ...]]:
        package, _, version = line.replace(">=", "==").partition("==")
        numbers = [int(part) for part in version.split(".")]
        return package, tuple(numbers + [0] * (3 - len(numbers)))

    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    tested = (*project["dependencies"], *(line for name in ("serve", "eval", "gguf", "test") for line in extras[name]))
    promised = [line for line in tested if ">=" in line]
    tried = [line for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(map(bare, promised)) == sorted(map(bare, tried))
