"""The engine's inner loops in C++, compiled once for this processor; everything works without them.

    products.hpp   matrix products that read weights live, in float and in low-bit kinds
    library.py     compiles every *.cpp here, checks and loads the result: `load()`
    python -m trueline.serve.native       builds it now instead of at first use

Left out: other compilers than GCC (its OpenMP is the one that torch has loaded), Windows and macOS.
"""
