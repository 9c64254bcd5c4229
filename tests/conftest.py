"""The whole suite runs on all cores (at most four processes, a file's tests in one of them), a few files in one process: there
`-s` and `--pdb` work. `-n 0` is one process always."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: each process has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` of pyproject.toml means."""
    whole = config.args == config.getini("testpaths") or config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(4, os.cpu_count() or 1) if whole and (os.cpu_count() or 1) > 1 else 0
