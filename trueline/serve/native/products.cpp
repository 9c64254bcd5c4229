// y[t, n] = sum_k x[t, k] w[n, k] + bias[n] in tiles of registers.
//
//     few rows of x    tiles along n, every weight is read once, straight from memory       (a step of decoding)
//     many rows of x   panels of w that stay in the second cache x rows of x that stay in the first    (a prompt)
//
// Legend: T rows of x, N outputs, K inputs, TR x NR outputs of a tile.
#include "codes.hpp"

#include <algorithm>
#include <cstdlib>

namespace products {
namespace {

#if defined(__AVX512F__)
constexpr int NARROW[] = {0, 12, 10, 7, 6};  // outputs of a tile for 1, 2, 3, 4 rows of x: as many as the registers hold
#else
constexpr int NARROW[] = {0, 8, 6, 4, 3};
#endif
constexpr int ROWS = 4;             // rows of x in a tile at most
constexpr int WIDE = NARROW[ROWS];  // outputs of such a tile
constexpr int LOW_NARROW = 4;       // outputs of a tile of low-bit weights
constexpr int PARTS = 2;            // so many tiles of rows are worked on together: they stay in the first cache
constexpr int DIRECT = 16;          // up to so many rows of x, 16-bit weights are widened in the tile
constexpr int64_t DEPTH = 512;      // inputs of the rows that are worked on together
constexpr int64_t PANEL_FLOATS = 1 << 16;  // 256 KiB of weights stay in the second cache

// LANES inputs of the rows at p, or the fewer ones at their end.
template <class E>
struct Rows {
    const E* p;
    int64_t ld;
    Lanes operator()(int row) const { return load(p + row * ld); }
};

template <class E>
struct Ends {
    const E* p;
    int64_t ld, count;
    Lanes operator()(int row) const { return load_some(p + row * ld, count); }
};

// LANES inputs more for TR x NR strands. The shorter side stays in registers, the longer one passes by.
template <int TR, int NR, class X, class W>
[[gnu::always_inline]] inline void step(Lanes (&strands)[TR * NR], const X& x, const W& w) {
    constexpr bool few_rows = TR < NR;
    constexpr int HELD = few_rows ? TR : NR, PASSING = few_rows ? NR : TR;
    Lanes held[HELD];
#pragma GCC unroll 32
    for (int i = 0; i < HELD; ++i) keep(held[i] = few_rows ? x(i) : w(i));
#pragma GCC unroll 32
    for (int j = 0; j < PASSING; ++j) {
        Lanes one = few_rows ? w(j) : x(j);
        keep(one);
#pragma GCC unroll 32
        for (int i = 0; i < HELD; ++i) {
            Lanes& strand = strands[few_rows ? i * NR + j : j * NR + i];
            strand = fma(held[i], one, strand);
        }
    }
}

// Where outputs go.
struct Target {
    float* y;
    int64_t ld;
    const float* bias;
    bool add;
    [[gnu::always_inline]] void put(int64_t t, int64_t n, Lanes strands) const {
        float value = sum(strands);
        if (bias) value += bias[n];
        float& place = y[t * ld + n];
        place = add ? place + value : value;
    }
};

// Inputs from..to of TR x NR outputs. Strands go on from `kept` and return there, until the last inputs give outputs.
// Every loop over strands is unrolled and every array has constant indices: then all of them live in registers.
template <int TR, int NR, bool AHEAD, class E>
[[gnu::always_inline]] inline void tile(const float* x, int64_t ldx, const E* w, int64_t ldw, int64_t from, int64_t to,
                                        bool last, Lanes* kept, const Target& target, int64_t t, int64_t n) {
    Lanes strands[TR * NR] = {};
    if (from > 0) {
#pragma GCC unroll 32
        for (int i = 0; i < TR * NR; ++i) strands[i] = kept[i];
    }
    const int64_t whole = from + (to - from) / LANES * LANES;
    const char* next = reinterpret_cast<const char*>(w + NR * ldw + NR * from);
    for (int64_t k = from; k < whole; k += LANES) {
        if constexpr (AHEAD) {  // the rows that come next, as fast as these ones are read
            constexpr int BYTES = NR * LANES * sizeof(E);
#pragma GCC unroll 32
            for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(next + i);
            next += BYTES;
        }
        step<TR, NR>(strands, Rows<float>{x + k, ldx}, Rows<E>{w + k, ldw});
    }
    if (whole < to) step<TR, NR>(strands, Ends<float>{x + whole, ldx, to - whole}, Ends<E>{w + whole, ldw, to - whole});
    if (last) {
#pragma GCC unroll 32
        for (int i = 0; i < TR * NR; ++i) target.put(t + i / NR, n + i % NR, strands[i]);
    } else {
#pragma GCC unroll 32
        for (int i = 0; i < TR * NR; ++i) kept[i] = strands[i];
    }
}

// The outputs n..end of TR rows, all inputs at once, NR at a time and then fewer.
template <int TR, int NR, class E>
[[gnu::noinline]] void strip(const float* x, int64_t ldx, const E* w, int64_t ldw, int64_t K, const Target& target,
                             int64_t n, int64_t end) {
    for (; n + NR <= end; n += NR) tile<TR, NR, true>(x, ldx, w + n * ldw, ldw, 0, K, true, nullptr, target, 0, n);
    if constexpr (NR > 1) {
        if (n < end) strip<TR, NR / 2>(x, ldx, w, ldw, K, target, n, end);
    }
}

// T <= ROWS rows of x, from row t on, against `count` rows of w, whatever their kind.
template <class E>
inline void narrow(const float* x, int64_t ldx, int64_t T, const E* w, int64_t ldw, int64_t K, const Target& target,
                   int64_t t, int64_t first, int64_t count) {
    const Target part{target.y + t * target.ld + first, target.ld, target.bias ? target.bias + first : nullptr, target.add};
    switch (T) {
        case 1: return strip<1, NARROW[1]>(x, ldx, w, ldw, K, part, 0, count);
        case 2: return strip<2, NARROW[2]>(x, ldx, w, ldw, K, part, 0, count);
        case 3: return strip<3, NARROW[3]>(x, ldx, w, ldw, K, part, 0, count);
        default: return strip<4, NARROW[4]>(x, ldx, w, ldw, K, part, 0, count);
    }
}

// `rows` rows of x against NR of w.
template <int TR, int NR, bool AHEAD>
[[gnu::noinline]] void apart(const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t from, int64_t to, bool last,
                             Lanes* kept, const Target& target, int64_t t, int64_t n) {
    tile<TR, NR, AHEAD>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
}

template <int NR, bool AHEAD>
inline void part(int64_t rows, const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t from, int64_t to,
                 bool last, Lanes* kept, const Target& target, int64_t t, int64_t n) {
    switch (rows) {
        case 1: return apart<1, NR, AHEAD>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        case 2: return apart<2, NR, AHEAD>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        case 3: return apart<3, NR, AHEAD>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        default: return apart<4, NR, AHEAD>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
    }
}

// Memory of a thread, kept from call to call: strands of a block against a panel, and a panel made into floats.
struct Scratch {
    Lanes* kept = nullptr;
    float* panel = nullptr;
    int64_t kept_size = 0, panel_size = 0;
    ~Scratch() { std::free(kept), std::free(panel); }
    template <class A>
    static A* grown(A*& memory, int64_t& size, int64_t wanted) {
        if (size < wanted) {
            std::free(memory);
            memory = static_cast<A*>(std::aligned_alloc(64, (wanted * sizeof(A) + 63) / 64 * 64));
            if (!memory) std::abort();
            size = wanted;
        }
        return memory;
    }
    Lanes* strands(int64_t wanted) { return grown(kept, kept_size, wanted); }
    float* floats(int64_t wanted) { return grown(panel, panel_size, wanted); }
};

inline Scratch& scratch() {
    static thread_local Scratch one;
    return one;
}

inline int64_t panel_rows(int64_t K) {
    const int64_t fit = PANEL_FLOATS / std::max<int64_t>(K, 1);
    return std::max<int64_t>(fit / WIDE * WIDE, 2 * WIDE);
}

// Rows start(number)..start(number + 1) of x are a tile's: ROWS of them or one fewer, and never one alone.
struct Cuts {
    int64_t T, parts;
    explicit Cuts(int64_t rows) : T(rows), parts((rows + ROWS - 1) / ROWS) {}
    int64_t start(int64_t number) const { return number * (T / parts) + std::min(number, T % parts); }
};

// All rows of x against a panel of `count` rows of w.
inline void panel(const float* x, int64_t ldx, const Cuts& cuts, const float* w, int64_t ldw, int64_t K, const Target& target,
                  int64_t first, int64_t count) {
    const int64_t pieces = std::max<int64_t>((K + DEPTH - 1) / DEPTH, 1);
    const int64_t depth = (K + pieces * LANES - 1) / (pieces * LANES) * LANES;
    Lanes* kept = pieces > 1 ? scratch().strands((count + WIDE) * PARTS * ROWS) : nullptr;
    for (int64_t block = 0; block < cuts.parts; block += PARTS)
        for (int64_t from = 0; from < std::max<int64_t>(K, 1); from += depth) {
            const int64_t to = std::min(K, from + depth);
            Lanes* at = kept;
            for (int64_t n = 0; n < count; n += WIDE)
                for (int64_t one = block; one < std::min(cuts.parts, block + PARTS); ++one, at += kept ? ROWS * WIDE : 0) {
                    const int64_t t = cuts.start(one), rows = cuts.start(one + 1) - t;
                    const float* xs = x + t * ldx;
                    if (n + WIDE <= count && one == 0)
                        part<WIDE, true>(rows, xs, ldx, w + n * ldw, ldw, from, to, to == K, at, target, t, first + n);
                    else if (n + WIDE <= count)
                        part<WIDE, false>(rows, xs, ldx, w + n * ldw, ldw, from, to, to == K, at, target, t, first + n);
                    else
                        for (int64_t rest = n; rest < count; ++rest)
                            part<1, false>(rows, xs, ldx, w + rest * ldw, ldw, from, to, to == K, at + (rest - n) * ROWS,
                                           target, t, first + rest);
                }
        }
}

// Rows of codes that follow one another.
struct Codes {
    const uint8_t* codes;
    const float* scales;
    const float* zeros;
    int64_t K, group, row_bytes;
    Codes from(int64_t n) const {
        const int64_t groups = n * (K / group);
        return {codes + n * row_bytes, scales + groups, zeros ? zeros + groups : nullptr, K, group, row_bytes};
    }
    float scale(int64_t row, int64_t number) const { return scales[row * (K / group) + number]; }
    template <class C>
    float zero(int64_t row, int64_t number) const {
        return zeros ? zeros[row * (K / group) + number] : C::ZERO;
    }
};

template <class C, int TR, int NR>
[[gnu::noinline]] void low_strip(const float* x, int64_t ldx, const Codes& w, const Target& target, int64_t n, int64_t end) {
    for (; n + NR <= end; n += NR) {
        const Codes rows = w.from(n);
        Lanes strands[TR * NR] = {};
        const uint8_t *unit = rows.codes, *next = rows.codes + NR * w.row_bytes;
        for (int64_t k = 0, number = 0; k < w.K; ++number) {
            Lanes scale[NR], zero[NR];
#pragma GCC unroll 32
            for (int j = 0; j < NR; ++j) {
                scale[j] = Lanes{} + rows.scale(j, number);
                zero[j] = Lanes{} + rows.zero<C>(j, number);
            }
            for (const int64_t last = k + w.group; k < last; k += UNIT, unit += C::BYTES, next += NR * C::BYTES) {
#pragma GCC unroll 32
                for (int i = 0; i < NR * C::BYTES; i += 64) __builtin_prefetch(next + i);
#pragma GCC unroll 32
                for (int j = 0; j < NR; ++j) {
                    Lanes values[VECTORS];
                    C::values(unit + j * w.row_bytes, scale[j], zero[j], values);
#pragma GCC unroll 32
                    for (int i = 0; i < TR * VECTORS; ++i) {
                        const int t = i / VECTORS, part = i % VECTORS;
                        strands[t * NR + j] = fma(load(x + t * ldx + k + part * LANES), values[part], strands[t * NR + j]);
                    }
                }
            }
        }
#pragma GCC unroll 32
        for (int i = 0; i < TR * NR; ++i) target.put(i / NR, n + i % NR, strands[i]);
    }
    if constexpr (NR > 1) {
        if (n < end) low_strip<C, TR, NR / 2>(x, ldx, w, target, n, end);
    }
}

template <class C>
inline void unpack_codes(const Codes& w, int64_t rows, float* out) {
    const uint8_t* unit = w.codes;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0, number = 0; k < w.K; ++number) {
            const Lanes scale = Lanes{} + w.scale(row, number), zero = Lanes{} + w.zero<C>(row, number);
            for (const int64_t last = k + w.group; k < last; k += UNIT, unit += C::BYTES, out += UNIT) {
                Lanes values[VECTORS];
                C::values(unit, scale, zero, values);
                std::memcpy(out, values, sizeof values);
            }
        }
}

template <class C>
inline void low(const Weight& weight, const float* x, int64_t ldx, int64_t T, const Target& target, int64_t n0, int64_t count) {
    const int64_t K = weight.K, row_bytes = K / UNIT * C::BYTES;
    const Codes w = Codes{static_cast<const uint8_t*>(weight.data), weight.scales, weight.zeros, K, weight.group, row_bytes}.from(n0);
    if (T == 1) return low_strip<C, 1, LOW_NARROW>(x, ldx, w, target, 0, count);
    if (T == 2) return low_strip<C, 2, LOW_NARROW>(x, ldx, w, target, 0, count);
    const Cuts cuts(T);
    const int64_t rows = panel_rows(K);
    float* unpacked = scratch().floats(rows * K);
    for (int64_t first = 0; first < count; first += rows) {
        const int64_t some = std::min(rows, count - first);
        unpack_codes<C>(w.from(first), some, unpacked);
        panel(x, ldx, cuts, unpacked, K, K, target, first, some);
    }
}

template <class E>
inline void dense(const E* w, const float* x, int64_t ldx, int64_t T, int64_t K, const Target& target, int64_t count) {
    constexpr bool floats = sizeof(E) == sizeof(float);
    const Cuts cuts(T);
    const int64_t rows = T <= ROWS ? count : panel_rows(K);
    for (int64_t first = 0; first < count; first += rows) {
        const int64_t some = std::min(rows, count - first);
        const E* ws = w + first * K;
        if (T <= (floats ? ROWS : DIRECT)) {
            for (int64_t one = 0; one < cuts.parts; ++one) {
                const int64_t t = cuts.start(one);
                narrow(x + t * ldx, ldx, cuts.start(one + 1) - t, ws, K, K, target, t, first, some);
            }
        } else if constexpr (floats) {
            panel(x, ldx, cuts, ws, K, K, target, first, some);
        } else {
            float* unpacked = scratch().floats(rows * K);
            unpack(ws, some * K, unpacked);
            panel(x, ldx, cuts, unpacked, K, K, target, first, some);
        }
    }
}

}  // namespace
}  // namespace products

void product(const Weight& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t n0, int64_t n1, bool add) {
    using namespace products;
    if (T < 1 || n1 <= n0) return;
    const Target target{y + n0, ldy, w.bias ? w.bias + n0 : nullptr, add};
    const int64_t count = n1 - n0;
    switch (w.kind) {
        case F32: return dense(static_cast<const float*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        case BF16: return dense(static_cast<const bfloat16*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        case F16: return dense(static_cast<const float16*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        case INT8: return low<Int8>(w, x, ldx, T, target, n0, count);
        case INT4: return low<Int4>(w, x, ldx, T, target, n0, count);
        case NF4: return low<NormalFloat>(w, x, ldx, T, target, n0, count);
        default: std::abort();
    }
}

extern "C" {

// One share of the outputs, by the calling thread.
void trueline_product(const Weight* w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t n0, int64_t n1,
                      int32_t add) {
    product(*w, x, ldx, T, y, ldy, n0, n1, add != 0);
}

// Bytes of the vector registers that were compiled for.
int32_t trueline_vector_bytes() { return products::LANES * 4; }
}
