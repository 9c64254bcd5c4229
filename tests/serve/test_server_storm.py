"""A storm of requests, leaving clients and nonsense; 10,000 by `make soak`, 150 by `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.storm import WORDS, run
from tests.tiny import tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("requests", [pytest.param(150, marks=pytest.mark.sample), 10_000])
def test_the_server_survives(tmp_path: Path, requests: int) -> None:
    """No status but those of the protocol, nothing left open, memory flat, an orderly end."""
    wrong, figures = run(tiny_model(tmp_path, [" ".join(WORDS)] * 20), requests)
    assert not wrong, f"{figures}\n" + "\n".join(wrong[:20])
    assert figures["requests"] == requests and figures["statuses"][200] > requests // 3
