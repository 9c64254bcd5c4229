"""`trueline serve`: a model behind OpenAI's protocol."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from trueline.cli.places import BASE, model_folder
from trueline.cli.precision import Bits, Precision
from trueline.serve.http.limits import Limits

if TYPE_CHECKING:
    import torch

    from trueline.models.decoder import Decoder

KEY = "TRUELINE_KEY"
"""The environment variable that may hold the key."""
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer OpenAI's protocol: /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models, /health, /metrics.

    Without --host, only this machine can connect. With another host every request needs a key: the one of --key or the
    environment variable TRUELINE_KEY, or one that is made and printed at start. SIGTERM finishes what runs, then ends.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = BASE
    """A folder, a hub id, or "base", the model that ships with Trueline."""
    adapter: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ...", help_behavior_hint="(optional)")] = ()
    """Adapters of this model: requests choose one by its name as their model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """Port; 0 takes a free one."""
    key: str = ""
    """Requests must bring it as Authorization: Bearer KEY. Others can see a command line: TRUELINE_KEY is safer."""
    name: str = ""
    """What the model is called in requests; by default the name of its folder."""
    max_batch: int = 64
    """Responses drawn at the same time."""
    cache_tokens: int = 0
    """Tokens whose keys and values are kept at most, of running responses and of prefixes that may come again; 0: max_batch times
    the context, in at most a quarter of the machine's memory."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    precision: Bits = field(default_factory=Precision)
    """How many bits to compute with."""
    limits: Annotated[Limits, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    """What requests may ask for."""

    def run(self) -> None:
        """Load, open the port, answer until a signal."""
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"trueline serve needs {', '.join(missing)}: pip install 'trueline[serve]'")
        from trueline.models.adapter_files import load_adapter
        from trueline.models.adapters import set_adapter
        from trueline.models.files import load_model
        from trueline.serve.engine import Engine
        from trueline.serve.http.orders import Served
        from trueline.serve.http.server import Server, access, bind, is_loopback, limits_for, serve
        from trueline.tokens import load_tokenizer

        adapters = adapter_folders(self.adapter)
        sock = bind(self.host, self.port)
        try:
            folder = model_folder(self.model)
            model, tokenizer = load_model(folder, device=self.device), load_tokenizer(folder)
            for adapter, place in adapters.items():
                load_adapter(model, place, adapter)
            if adapters:
                set_adapter(model)
            self.precision.apply(model.requires_grad_(False).eval())
            engine = Engine(
                model, tokenizer, self.max_batch,
                cache_tokens=self.cache_tokens or most_tokens(model, self.max_batch, self.precision.cache_dtype),
                cache_dtype=self.precision.cache_dtype, adapters=tuple(adapters),
            )  # fmt: skip
        except BaseException:
            sock.close()
            raise
        base = self.name or Path(folder).name or self.model
        if base in adapters:
            raise ValueError(f"--adapter {base}=... has the name of the model itself: choose another")
        key, made = access(self.host, self.key or os.environ.get(KEY, ""))
        console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        if made:
            console.print(f"key: {key}  (made now, not stored; set {KEY} to use your own)")
        limits = limits_for(self.host, self.limits)
        if limits != self.limits:
            console.print(f"limit: {limits.requests_per_minute} requests per minute and client; --requests_per_minute sets another")
        served = Served(
            tokenizer=tokenizer, names={base: "", **{name: name for name in adapters}},
            vocab_size=model.config.vocab_size, context=model.config.max_length, limits=limits,
        )  # fmt: skip

        def opened(server: Server) -> None:
            port = sock.getsockname()[1]
            if engine.backend != "C++":
                console.print(f"computing on {engine.backend}")
            console.print(f"{base} answers at http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}/v1; Ctrl-C ends")

        serve(sock, engine, served, opened, key=key, loopback=is_loopback(self.host))


def most_tokens(model: Decoder, max_batch: int, cache_dtype: torch.dtype | None) -> int:
    """Tokens that a full batch of the longest sequences has, or whose keys and values fill a quarter of the machine's memory."""
    all_of_them = max_batch * model.config.max_length
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return all_of_them
    one = model.new_cache(1, dtype=cache_dtype)
    return all_of_them if model.device.type != "cpu" else min(all_of_them, memory // 4 // one.block_bytes * one.block_size)


def adapter_folders(given: tuple[str, ...]) -> dict[str, str]:
    """["law=runs/law"] -> {"law": "runs/law"}."""
    found: dict[str, str] = {}
    for one in given:
        name, sign, folder = one.partition("=")
        if not (name and sign and folder):
            raise ValueError(f"--adapter {one!r}: write NAME=DIR, such as law=runs/law")
        if name in found:
            raise ValueError(f"--adapter names {name} twice: give each adapter its own name")
        found[name] = folder
    return found
