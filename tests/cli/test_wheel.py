"""The built wheel, installed outside the clone, works: nothing depends on files that only a clone has."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import trueline

ROOT = Path(trueline.__file__).parent.parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trueline`, installed from a wheel into a fresh environment."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, env=environment)
    (wheel,) = folder.glob("trueline-*.whl")
    assert wheel.stat().st_size < 20 << 20, "the base model ships within 16 MB"
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([scripts / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True, env=environment)
    return scripts / "trueline"


def run(program: Path, folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_answers(program: Path, tmp_path: Path) -> None:
    assert "quickstart" in run(program, tmp_path, "--help")
    assert f"versions.trueline{' ':>6}{trueline.__version__}" in run(program, tmp_path, "env")
    listed = subprocess.run(
        [program.with_name("python"), "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = [line for line in listed.stdout.splitlines() if not line.startswith(("pip=", "trueline="))]
    assert len(packages) <= 45, packages


@pytest.mark.slow
def test_wheel_speaks_and_runs_the_quickstart(program: Path, tmp_path: Path) -> None:
    """The shipped base model is in the wheel, and the quickstart ends with its report."""
    assert run(program, tmp_path, "generate", "name: read file", "--max_new_tokens", "8")
    run(program, tmp_path, "quickstart", "--minutes", "1", "--out", "out")
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
