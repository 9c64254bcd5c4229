"""`trueline export`: a model as one GGUF file for llama.cpp and what is built on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trueline.cli.places import model_folder
from trueline.tokens import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write weights, tokenizer and chat template as one GGUF file. Where llama-cpp-python is installed, it spells some 1,500
    hard texts for comparison."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder, a hub id, or "base", the model that ships with Trueline."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.gguf")]
    """The file; it must not exist yet."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16"
    """How matrices are stored: 32, 16, 16, 8.5 and 4.5 bits per weight (with q4_0, embedding and head are q8_0)."""
    ids_only: bool = False
    """Leave the tokenizer out: the file maps token ids to token ids."""

    def run(self) -> None:
        """Check the tokenizer, write, compare."""
        from trueline.models.files import load_model
        from trueline.models.gguf import write_gguf
        from trueline.tokens.gguf import difference, gguf_tokenizer, notes

        if self.out.exists():
            raise ValueError(f"{self.out} exists already: choose another --out")
        folder = model_folder(self.model)
        model = load_model(folder)
        tokenizer = None if self.ids_only else load_tokenizer(folder)
        metadata = None if tokenizer is None else gguf_tokenizer(tokenizer, model.config.vocab_size)
        written = write_gguf(model, self.out, kind=self.type, tokenizer=metadata)
        print(f"{self.out}: {written.tensors} tensors, {written.bytes / 1e6:,.1f} MB, {self.type}, context {written.context:,}")
        if written.kept:
            print(f"in f16, as their rows are no multiple of 32: {', '.join(written.kept)}")
        if tokenizer is None or metadata is None:
            print("no tokenizer: give llama.cpp token ids")
            return
        print(f"tokenizer: {metadata['tokenizer.ggml.model']}, cut as {metadata['tokenizer.ggml.pre']}")
        for note in notes(tokenizer):
            print(note)
        found = difference(self.out, tokenizer)
        if found:
            self.out.unlink()
            raise ValueError(f"{found}; the file was removed: --ids_only writes the model without a tokenizer")
        print("llama-cpp-python is not installed: spelling was not compared" if found is None else "llama.cpp spells all hard texts alike")
