"""Names and shapes of weights in a family's files: one parameter per tensor, or several joined into one.

    groups(family, shapes of our parameters) -> Group ...
    group.join(our tensors) -> stored tensors       group.split(stored tensors) -> our tensors, exactly the same numbers

Inside the decoder q, k, v, gate and up are always layers of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.models.families.family import Family

HEADS = "lm_head.", "score."


def stored_name(family: Family, name: str) -> str:
    """A parameter's name in the file, less what `fused` and `stacked` do. `name` is a Decoder's or a ScalarModel's."""
    name = name.removeprefix("decoder.")
    if name.startswith(HEADS):
        return name
    return ".".join([family.base, *(family.names.get(part, part) for part in name.split("."))])


@dataclass(frozen=True)
class Group:
    """Some of our parameters, and the tensors that hold them in the file."""

    ours: Mapping[str, torch.Size]
    stored: tuple[str, ...]
    heads: int = 0
    """The parts' rows alternate, head by head; 0: one part below the other."""
    stacked: bool = False
    """Our one parameter's rows are the stored tensors."""
    transposed: bool = False

    def join(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors, in order -> the stored ones, in order."""
        if self.stacked:
            return list(tensors[0].unbind(0))
        if len(tensors) == 1:
            whole = tensors[0]
        elif self.heads:
            whole = torch.cat([x.unflatten(0, (self.heads, -1)) for x in tensors], 1).flatten(0, 1)
        else:
            whole = torch.cat(list(tensors))
        return [whole.T if self.transposed else whole]

    def split(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The stored tensors, in order -> ours, in order."""
        if self.stacked:
            return [torch.stack(list(tensors))]
        whole = tensors[0].T if self.transposed else tensors[0]
        if len(self.ours) == 1:
            return [whole]
        rows = [shape[0] for shape in self.ours.values()]
        if self.heads:
            parts = whole.unflatten(0, (self.heads, -1)).split([n // self.heads for n in rows], 1)
            return [part.flatten(0, 1) for part in parts]
        return list(whole.split(rows))

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the stored tensors; nothing is allocated."""
        empty = [torch.empty(shape, device="meta") for shape in self.ours.values()]
        return {name: x.shape for name, x in zip(self.stored, self.join(empty), strict=True)}


def groups(family: Family, shapes: Mapping[str, torch.Size], heads: int) -> Iterator[Group]:
    """Every parameter in exactly one group. `shapes` are those of a Decoder or a ScalarModel with so many `heads`."""
    first = {fused.parts[0]: fused for fused in family.fused}
    later = {part for fused in family.fused for part in fused.parts[1:]}
    for name, shape in shapes.items():
        *path, module, kind = name.split(".")
        if module in first:
            fused = first[module]
            parts = [".".join([*path, part, kind]) for part in fused.parts]
            stored = ".".join([*path, fused.stored, kind])
            yield Group(
                {part: shapes[part] for part in parts},
                (stored_name(family, stored),),
                heads=heads if fused.per_head else 0,
                transposed=family.transposed and len(shape) == 2,
            )
        elif module in family.stacked:
            place = ".".join([*path, family.stacked[module], kind])
            yield Group(
                {name: shape}, tuple(stored_name(family, place.format(i)) for i in range(shape[0])), stacked=True
            )
        elif module not in later:
            inner = family.transposed and len(shape) == 2 and "layers" in path
            yield Group({name: shape}, (stored_name(family, name),), transposed=inner)
