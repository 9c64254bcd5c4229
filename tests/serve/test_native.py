"""Products in C++ against float64 and against themselves; building and doing without the library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from trueline.models.lowbit import Code, LowBitLinear
from trueline.serve.native import compiled as native
from trueline.serve.native.check import KINDS, Weight, check
from trueline.serve.native.weights import weight_of

GCC = None if os.environ.get("TRUELINE_NATIVE") == "0" else shutil.which(os.environ.get("CXX", "g++"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    loaded = native.load()
    if loaded.handle is None and (GCC is None or sys.platform != "linux"):
        pytest.skip(loaded.reason)
    assert loaded.handle is not None, loaded.reason
    return loaded.handle


def product(
    lib: ctypes.CDLL,
    x_TK: Tensor,
    w_NK: Tensor,
    bias_N: Tensor | None = None,
    shares: tuple[int, ...] = (),
    start: Tensor | None = None,
) -> Tensor:
    """x w' + bias, share by share; with `start`, added to it."""
    (T, K), N = x_TK.shape, len(w_NK)
    kind = {dtype: KINDS[name] for name, dtype in DTYPES.items()}[w_NK.dtype]
    weight = Weight(w_NK.data_ptr(), None, None, None if bias_N is None else bias_N.data_ptr(), N, K, kind, 0)
    y_TN = torch.full((T, N), torch.nan) if start is None else start.clone()
    for n0, n1 in zip((0, *shares), (*shares, N), strict=True):
        lib.trueline_product(weight, x_TK.data_ptr(), x_TK.stride(0), T, y_TN.data_ptr(), N, n0, n1, start is not None)
    return y_TN


def only_products(folder: Path) -> Path:
    """Sources of which a library is compiled in seconds."""
    sources = folder / "sources"
    sources.mkdir()
    for name in ("products.hpp", "codes.hpp", "products.cpp"):
        shutil.copy(native.SOURCES / name, sources)
    return sources


def weights(N: int, K: int, kind: str = "float32", seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed)).to(DTYPES[kind])


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(
    "T, N, K", [(1, 1, 1), (1, 7, 513), (3, 40, 31), (4, 13, 64), (9, 29, 8), (13, 1, 1500), (21, 100, 1100)]
)
def test_as_exact_as_torch(lib: ctypes.CDLL, kind: str, T: int, N: int, K: int) -> None:
    """Against float64, with bias and with an addition; the error is of the size of torch's own."""
    x, w, bias, start = weights(T, K, seed=1), weights(N, K, kind), weights(1, N, seed=2)[0], weights(T, N, seed=3)
    exact = x.double() @ w.double().T
    theirs = (torch.nn.functional.linear(x, w.float()) - exact).norm()
    limit = 2 * theirs + 1e-7 * exact.norm()
    assert (product(lib, x, w) - exact).norm() <= limit
    assert (product(lib, x, w, bias) - exact - bias).norm() <= limit + 1e-7 * bias.norm()
    assert (product(lib, x, w, bias, start=start) - exact - bias - start).norm() <= limit + 2e-7 * start.norm()


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("N, K", [(50, 96), (23, 1003), (1, 40)])
def test_same_bits_whatever_the_batch(lib: ctypes.CDLL, kind: str, N: int, K: int) -> None:
    """The number of rows, a row's place, and where shares are cut change no bit."""
    x, w, bias = weights(19, K, seed=1), weights(N, K, kind), weights(1, N, seed=2)[0]
    alone = torch.cat([product(lib, x[t : t + 1], w, bias) for t in range(len(x))])
    for T in range(1, len(x) + 1):
        assert torch.equal(product(lib, x[:T], w, bias), alone[:T])
        assert torch.equal(product(lib, x[-T:], w, bias), alone[-T:])
    for shares in [(1,), (N // 2,), (0, N // 3, N // 3 + 1, N - 1)]:
        assert torch.equal(product(lib, x, w, bias, shares), alone)
        assert torch.equal(product(lib, x[:1], w, bias, shares), alone[:1])


@pytest.mark.parametrize("kind", DTYPES)
def test_unaligned(lib: ctypes.CDLL, kind: str) -> None:
    """Rows that begin anywhere and lie further apart than they are long."""
    N, K, T = 9, 45, 6
    x, w = weights(T, K, seed=1), weights(N, K, kind)
    apart, moved = torch.zeros(T, K + 3), torch.zeros(N * K + 1, dtype=w.dtype)
    apart[:, 1:-2] = x
    moved[1:] = w.flatten()
    assert torch.equal(product(lib, apart[:, 1:-2], moved[1:].view(N, K)), product(lib, x, w))


@pytest.mark.parametrize("code", get_args(Code))
@pytest.mark.parametrize("N, K, group", [(1, 32, 32), (37, 192, 64), (60, 640, 128)])
def test_low_bits(lib: ctypes.CDLL, code: Code, N: int, K: int, group: int) -> None:
    """As exact as torch is with the matrix that the codes stand for; the same bits whatever the batch, and for any shares."""
    dense = torch.nn.Linear(K, N)
    layer, x = LowBitLinear(dense, code, group), weights(13, K, seed=1)
    weight, exact = weight_of(layer), x.double() @ layer.part(0, N, torch.float64).T + dense.bias

    def native_product(x_TK: Tensor, shares: tuple[int, ...] = ()) -> Tensor:
        y_TN = torch.full((len(x_TK), N), torch.nan)
        for n0, n1 in zip((0, *shares), (*shares, N), strict=True):
            lib.trueline_product(weight, x_TK.data_ptr(), K, len(x_TK), y_TN.data_ptr(), N, n0, n1, 0)
        return y_TN

    alone = torch.cat([native_product(x[t : t + 1]) for t in range(len(x))])
    assert (alone - exact).norm() <= 2 * (layer(x) - exact).norm() + 1e-7 * exact.norm()
    for T in range(1, len(x) + 1):
        assert torch.equal(native_product(x[:T]), alone[:T])
    assert torch.equal(native_product(x[-3:], (0, N // 3, N // 3 + 1, N - 1)), alone[-3:])
    assert torch.equal(native_product(x[:1], (N // 2,)), alone[:1])


def test_nothing_beyond_a_share_is_written(lib: ctypes.CDLL) -> None:
    x, w = weights(5, 20, seed=1), weights(12, 20)
    y = torch.full((5, 12), 7.0)
    weight = Weight(w.data_ptr(), None, None, None, 12, 20, 0, 0)
    lib.trueline_product(weight, x.data_ptr(), 20, 5, y.data_ptr(), 12, 3, 8, 0)
    lib.trueline_product(weight, x.data_ptr(), 20, 0, y.data_ptr(), 12, 0, 12, 0)
    lib.trueline_product(weight, x.data_ptr(), 20, 5, y.data_ptr(), 12, 4, 4, 0)
    assert (y[:, :3] == 7).all() and (y[:, 8:] == 7).all() and (y[:, 3:8] != 7).all()


def test_one_openmp(lib: ctypes.CDLL) -> None:
    """torch's, which is loaded here, and no other."""
    names = {
        Path(line.split()[-1]).resolve()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libgomp" in line
    }
    assert len(names) == 1 and torch.__file__ is not None
    assert names.pop().is_relative_to(Path(torch.__file__).resolve().parents[1])


def test_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each thing that can be missing gives a sentence, and no library."""
    fresh = native.load.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRUELINE_NATIVE", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fresh().handle is None and "no-such-compiler" in fresh().reason
    monkeypatch.setenv("TRUELINE_NATIVE", "0")
    assert fresh().reason == "TRUELINE_NATIVE=0"


@pytest.mark.skipif(GCC is None or sys.platform != "linux", reason="needs g++")
def test_a_library_that_is_wrong_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code that does not compile, and code that computes something else: a sentence, and nothing in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wrong = tmp_path / "sources"
    wrong.mkdir()
    (wrong / "a.cpp").write_text("this is not C++")
    with pytest.raises(native.Unavailable, match=r"g\+\+ failed: .*error"):
        native.build(wrong)
    for name in ("products.hpp", "codes.hpp"):
        shutil.copy(native.SOURCES / name, wrong)
    code = (native.SOURCES / "products.cpp").read_text()
    assert "value += bias[n]" in code
    (wrong / "a.cpp").write_text(code.replace("value += bias[n]", "value -= bias[n]"))
    with pytest.raises(native.Unavailable, match="the compiled library fails its check: products of float32 are wrong"):
        native.build(wrong, ("-O0", "-fPIC", "-std=c++17", "-fopenmp"))
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(GCC is None or sys.platform != "linux", reason="needs g++")
def test_two_builds_at_once(tmp_path: Path) -> None:
    """Both end well, and one library is left."""
    run = "import pathlib, sys; from trueline.serve.native.compiled import build; build(pathlib.Path(sys.argv[1]))"
    environment, sources = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, only_products(tmp_path)
    both = [subprocess.Popen([sys.executable, "-c", run, str(sources)], env=environment) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert len(list(tmp_path.rglob("*.so"))) == 1
    assert [path.suffix for path in (tmp_path / "trueline" / "native").iterdir()] == [".so"]


@pytest.mark.slow
@pytest.mark.skipif(GCC is None or sys.platform != "linux", reason="needs g++")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3", "x86-64-v4", "cooperlake"])
def test_other_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, march: str) -> None:
    """It compiles for processors with narrower and wider vectors; where this one can run it, it is right, too."""
    if "x86" not in os.uname().machine:
        pytest.skip("for x86")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = tuple(f"-march={march}" if flag == "-march=native" else flag for flag in native.FLAGS)
    try:
        path = native.build(only_products(tmp_path), flags)
    except native.Unavailable as error:
        assert march in ("x86-64-v4", "cooperlake") and "fails its check: exit code -4" in str(error), (
            error
        )  # illegal instruction
        return
    assert check(native.declare(ctypes.CDLL(str(path)))) == ""
