"""How many bytes of tensors a computation holds at most, found without computing it.

    with weightless() as meter:              tensors made inside have shapes and sizes, but neither memory nor values
        model = Decoder(config)
        backward(objective, model, step, ...)
    meter.peak                               bytes

torch's FakeTensorMode answers every kernel by the shape of its result. A storage counts from the operation that made it
until nothing refers to it any more: weights, gradients, what is kept for the backward pass, temporaries. Without the fake
mode (`with Meter() as meter`) the same is counted of a real computation; both find the same number (test_forecast.py).

Left out: what a kernel takes for itself while it runs, and what the allocator loses (forecast.py allows for both).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Counts the storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """The most so far."""
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1  # a number asked of a tensor without values: finite, and true
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = id(storage)  # one python object per storage, as long as the storage lives
        if name not in self._known:
            size = storage.nbytes()
            self._known[name] = weakref.ref(storage, partial(self._drop, name)), size
            self.live += size
            self.peak = max(self.peak, self.live)

    def _drop(self, name: int, _: Any) -> None:
        self.live -= self._known.pop(name)[1]


@contextmanager
def weightless() -> Iterator[Meter]:
    """Compute shapes only, and count what would be held."""
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        yield meter
