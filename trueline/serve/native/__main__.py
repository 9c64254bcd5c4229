"""`python -m trueline.serve.native`: compile the library now and say where it lies, or why there is none. Exit code 0 both times."""

from __future__ import annotations

from trueline.serve.native.compiled import load


def main() -> None:
    """One line."""
    loaded = load()
    print(
        f"native: {loaded.path}"
        if loaded.handle
        else f"native: none, the engine runs on torch alone ({loaded.reason})"
    )


if __name__ == "__main__":
    main()
