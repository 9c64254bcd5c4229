"""The engine's inner loops in C++, compiled once for this processor; everything works without them.

    products.cpp   matrix products that read weights live, in float and in low-bit kinds (codes.hpp)
    compiled.py     compiles every *.cpp here, checks and loads the result: `load()`
    weights.py     the struct of a linear layer, as the products read it
    python -m trueline.serve.native       builds it now instead of at first use

Left out: other compilers than GCC (its OpenMP is the one that torch has loaded), Windows and macOS.
"""
