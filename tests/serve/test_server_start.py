"""`trueline serve` as a command: what is refused before the port opens, the key, the signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.tiny import tiny_model
from trueline.cli import main
from trueline.models.adapter_files import save_adapter
from trueline.models.adapters import attach
from trueline.models.files import load_model
from trueline.models.lora import LoRAConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), ["The sum of the values."] * 20)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence with which the command ends, exit code 2."""
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anybody can connect: the port is as it was."""
    with socket.create_server(("127.0.0.1", 0)) as some:
        port = some.getsockname()[1]
    for name, damage in (("model.safetensors", b"\0" * 64), ("config.json", b"{"), ("tokenizer.json", b"[]")):
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(damage if file.name == name else file.read_bytes())
        assert str(copy) in refused(capsys, str(copy), "--port", str(port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
    assert "nothing" in refused(capsys, str(tmp_path / "nothing"), "--port", str(port))


def test_what_else_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use: choose another --port" in refused(capsys, str(folder), "--port", port)
    assert "--port is 99999: ports go from 1 to 65535" in refused(capsys, str(folder), "--port", "99999")
    assert "cache_tokens is 5" in refused(capsys, str(folder), "--port", "0", "--cache_tokens", "5")
    assert "write NAME=DIR" in refused(capsys, str(folder), "--adapter", "law")
    assert "names law twice" in refused(capsys, str(folder), "--adapter", "law=a", "law=b")
    assert "max_body_bytes is 0: it must be above 0" in refused(capsys, str(folder), "--max_body_bytes", "0")
    assert "no address of this machine" in refused(capsys, str(folder), "--host", "nowhere.invalid")


@pytest.mark.slow
@pytest.mark.sample
def test_bound_wider_a_key_is_made_and_a_signal_ends_in_order(folder: Path, tmp_path: Path) -> None:
    """With an adapter from its folder; and neither transformers nor datasets is imported on the way."""
    model = load_model(folder)
    attach(model, LoRAConfig(r=2), seed=1)
    adapter = f"law={save_adapter(model, tmp_path / 'law')}"
    code = "import sys; from trueline.cli import main; code = main(sys.argv[1:]); print(sorted({'transformers', 'datasets'} & set(sys.modules))); sys.exit(code)"  # noqa: E501
    command = [sys.executable, "-c", code, "serve", str(folder), "--host", "0.0.0.0", "--port", "0", "--name", "mine", "--adapter", adapter]
    environment = {name: value for name, value in os.environ.items() if name != "TRUELINE_KEY"} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None and process.stdout is not None
        key = re.match(r"key: (\S{40,}) ", process.stderr.readline())
        assert key and "600 requests per minute" in process.stderr.readline()
        port = next(found for line in process.stderr if (found := re.search(r":(\d+)/v1", line)))
        url, header = f"http://127.0.0.1:{port[1]}/health", {"Authorization": f"Bearer {key[1]}"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=5)
        with urllib.request.urlopen(urllib.request.Request(url, headers=header), timeout=5) as answer:
            assert answer.read() == b'{"status":"ok"}'
        for name in ("mine", "law"):
            asked = json.dumps({"model": name, "prompt": "The sum", "max_tokens": 2}).encode()
            to = url.replace("health", "v1/completions")
            request = urllib.request.Request(to, asked, {**header, "Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert json.load(answer)["model"] == name
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout.read().strip() == "[]"
    finally:
        process.kill()
