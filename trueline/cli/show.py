"""A plan as people read it: what was read, the numbers, and rows with what is trained on in colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from trueline.train import Plan


def show_plan(plan: Plan, console: Console) -> None:
    """Print it; nothing of the plan is left out."""
    for note in plan.notes:
        console.print(note, markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, number in plan.numbers.items():
        table.add_row(name.replace("_", " "), f"{number:,}", style="bold")
    for name, setting in plan.settings.items():
        group = setting if isinstance(setting, Mapping) else {name: setting}  # the fields of a group are flags, too
        for field, value in group.items():
            table.add_row(field, str(value))
    console.print(table)
    plain = console.color_system is None
    if plan.numbers["scored_tokens"]:  # of prompts nothing is: what is trained on is yet to be drawn
        console.print(Text("trained on: ") + (Text("[[ so ]]") if plain else Text("green", style="green")))
    for number, sequences in enumerate(plan.samples, 1):
        for place, stretches in enumerate(sequences, 1):
            which = f"row {number}" + (f", response {place} of {len(sequences)}" if len(sequences) > 1 else "")
            console.print(Text(f"-- {which} ".ljust(min(console.width, 80), "-"), style="bold"))
            text = Text()
            for piece, scored in stretches:
                text.append(f"[[{piece}]]" if plain and scored else piece, style="green" if scored else "dim")
            console.print(text, soft_wrap=True)
    console.print("dry run: nothing was trained or written; leave out --dry_run to start")
