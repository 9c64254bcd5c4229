"""Compiles, checks and loads the shared library: `load()`, once per process, and `Weight`, the struct of products.hpp.

    sources, compiler, processor, torch's OpenMP --hash--> CACHE/trueline/native/HASH.so --check--> ctypes

The library is linked to the very OpenMP that torch brings, so that both share one pool of threads. A new one is tried in a
process of its own before it gets its name: a fault there costs a sentence, not a run. Whatever is missing, `load` says why and
the engine runs on torch. CACHE is XDG_CACHE_HOME or ~/.cache; TRUELINE_NATIVE=0 turns all of it off. No torch is imported here.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from trueline.serve.native.check import check, declare

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fPIC")
SECONDS = 300
"""A compiler that takes longer is stopped."""


class Loaded(NamedTuple):
    """The library, or why there is none."""

    handle: ctypes.CDLL | None
    path: Path | None
    reason: str
    """Empty when there is one."""


class Unavailable(Exception):
    """Why there is no library; never seen outside."""


@functools.cache
def load() -> Loaded:
    """The library of this process; built when the cache has none for this machine."""
    try:
        path = build()
        library = declare(ctypes.CDLL(str(path)))
        wrong = check(library) or _several_pools()
        if wrong:
            raise Unavailable(wrong)
    except (Unavailable, OSError) as error:
        return Loaded(None, None, str(error))
    return Loaded(library, path, "")


def build(sources: Path = SOURCES, flags: tuple[str, ...] = FLAGS) -> Path:
    """The compiled library of every *.cpp in `sources`, from the cache if it is there. Raises Unavailable.

    Safe when several processes do it at once: each works under a name of its own, and the last one to rename wins.
    """
    if os.environ.get("TRUELINE_NATIVE", "1") == "0":
        raise Unavailable("TRUELINE_NATIVE=0")
    if sys.platform != "linux":
        raise Unavailable(f"it is built on Linux only, this is {sys.platform}")
    openmp = _openmp()
    name = _key(sources, flags, openmp)
    try:
        compiler, version = _compiler()
    except Unavailable:
        made_before = sorted(_folder().glob(f"{name}-*.so"))  # by a machine image's builder, say
        if made_before:
            return made_before[-1]
        raise
    path = _folder() / f"{name}-{hashlib.sha256(version.encode()).hexdigest()[:8]}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        objects = []
        for source in sorted(sources.glob("*.cpp")):
            objects.append(str(Path(scratch) / f"{source.stem}.o"))
            _run([compiler, *flags, "-c", str(source), "-o", objects[-1]], "g++ failed")
        made = Path(scratch) / "made.so"
        # without -fopenmp, which would link the system's OpenMP beside torch's
        _run(
            [compiler, "-shared", *objects, str(openmp), f"-Wl,-rpath,{openmp.parent}", "-o", str(made)],
            "g++ could not link",
        )
        _run([sys.executable, "-m", "trueline.serve.native.check", str(made)], "the compiled library fails its check")
        os.replace(made, path)
    return path


def _run(command: list[str], failure: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{failure}: stopped after {SECONDS} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
        raise Unavailable(f"{failure}: {said.strip()}")


def _compiler() -> tuple[str, str]:
    """GCC's C++ compiler and its version."""
    wanted = os.environ.get("CXX", "g++")
    found = shutil.which(wanted)
    if found is None:
        raise Unavailable(f"no compiler {wanted}; install g++ for a faster engine")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=SECONDS).stdout
    if "Free Software Foundation" not in version:
        raise Unavailable(f"{found} is not GCC")
    return found, version.splitlines()[0]


def _openmp() -> Path:
    """torch's own libgomp."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    found = sorted([*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")])
    if not found:
        raise Unavailable(f"torch in {folder} brings no libgomp")
    return found[0]


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trueline" / "native"


def _key(sources: Path, flags: tuple[str, ...], openmp: Path) -> str:
    """Everything that the compiled code depends on, but for the compiler."""
    parts = [*flags, platform.machine(), _processor(), str(openmp), str(openmp.stat().st_size)]
    hashed = hashlib.sha256("\0".join(parts).encode())
    for source in sorted([*sources.glob("*.cpp"), *sources.glob("*.hpp")]):
        hashed.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return hashed.hexdigest()[:32]


def _processor() -> str:
    """Model and instruction sets of the first core."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return "\n".join(
        line for line in lines if line.startswith(("model name", "cpu family", "model\t", "flags", "Features"))
    )


def _several_pools() -> str:
    """A sentence when more than one OpenMP is loaded: two pools of threads would fight for the cores."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    names = (line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6)
    found = sorted(
        {os.path.realpath(name) for name in names if Path(name).name.startswith(("libgomp", "libiomp", "libomp"))}
    )
    return "" if len(found) <= 1 else f"more than one OpenMP is loaded: {', '.join(found)}"
