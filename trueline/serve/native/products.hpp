// y[t, n] = sum_k x[t, k] w[n, k] + bias[n], for weights that lie in memory as torch keeps them: [N, K], row by row.
//
//     few rows of x    tile over n, every weight is read once, straight from memory      (a step of decoding)
//     many rows of x   panels of w that stay in the second cache x blocks of x that stay in the first    (a prompt)
//
// Nothing is packed beforehand, so weights in training are read as they are. The sum of one output runs in LANES strands
// along k, which are added in a fixed tree at the end: it does not depend on how many rows x has, on the place of a row,
// on the tile, or on which thread it falls to. A response is the same whatever it is batched with, bit for bit.
//
// Legend: T rows of x, N outputs, K inputs, TR x NR outputs of a register tile.
// Left out: packed copies of the weights (faster by a little for many rows, stale after every step of training).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

enum Kind : int32_t { F32, BF16, F16, INT8, INT4, NF4 };

struct Weight {
    const void* data;     // [N, K] in the kind's own form
    const float* scales;  // [N, K / group], low-bit kinds only
    const float* zeros;   // [N, K / group] or null
    const float* bias;    // [N] or null
    int64_t N, K;
    int32_t kind, group;
};

namespace products {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int NARROW[] = {0, 12, 10, 7, 6};  // outputs of a tile for 1, 2, 3, 4 rows of x: as many as the registers hold
constexpr int WIDE = 6;
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int NARROW[] = {0, 8, 6, 4, 3};
constexpr int WIDE = 3;
#else
constexpr int LANES = 4;
constexpr int NARROW[] = {0, 8, 6, 4, 3};
constexpr int WIDE = 3;
#endif
constexpr int ROWS = 4;                       // rows of x in a tile at most
constexpr int BLOCK = 8;                      // rows of x that are worked on together: they stay in the first cache
constexpr int64_t DEPTH = 512;                // inputs of such a block
constexpr int64_t PANEL_FLOATS = 1 << 16;     // 256 KiB of weights stay in the second cache

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

inline Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline Lanes load(const float* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline Bits widen(const void* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, Bits);
}

inline Lanes load(const bfloat16* p) { return (Lanes)(widen(p) << 16); }

inline Lanes load(const float16* p) {
#if defined(__AVX512F__)
    __m256i h;
    std::memcpy(&h, p, sizeof h);
    return (Lanes)_mm512_cvtph_ps(h);
#elif defined(__F16C__) && defined(__AVX2__)
    __m128i h;
    std::memcpy(&h, p, sizeof h);
    return (Lanes)_mm256_cvtph_ps(h);
#else
    const Bits h = widen(p), magnitude = (h & 0x7fff) << 13;
    const Lanes scale = Lanes{} + 0x1p112f;  // the exponents' biases differ by 127 - 15
    Bits value = (Bits)((Lanes)magnitude * scale);
    value |= (Bits)(magnitude >= 0x0f800000u) & 0x7f800000u;  // infinities and NaN
    return (Lanes)(value | (h & 0x8000) << 16);
#endif
}

// The last K % LANES inputs, zeros behind them. Nothing beyond the row is read.
template <class E>
inline Lanes load_some(const E* p, int64_t count) {
    E padded[LANES] = {};
    std::memcpy(padded, p, count * sizeof(E));
    return load(padded);
}

// The fixed tree: halves are added until one lane is left.
inline float sum(Lanes v) {
    float lane[LANES];
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
    (void)lane;
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
    std::memcpy(lane, &v, sizeof lane);
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
#endif
}

// Where outputs go.
struct Target {
    float* y;
    int64_t ld;
    const float* bias;
    bool add;
    void put(int64_t t, int64_t n, Lanes strands) const {
        float value = sum(strands);
        if (bias) value += bias[n];
        float& place = y[t * ld + n];
        place = add ? place + value : value;
    }
};

// Inputs from..to of TR x NR outputs. Strands go on from `kept` and return there, until the last inputs give outputs.
template <int TR, int NR, class E>
inline void tile(const float* x, int64_t ldx, const E* w, int64_t ldw, int64_t from, int64_t to, bool last, Lanes* kept,
                 const Target& target, int64_t t, int64_t n) {
    Lanes strands[TR][NR] = {};
    if (from > 0)
        for (int i = 0; i < TR; ++i)
            for (int j = 0; j < NR; ++j) strands[i][j] = kept[i * NR + j];
    int64_t k = from;
    for (; k + LANES <= to; k += LANES) {
        Lanes ws[NR];
#pragma GCC unroll 16
        for (int j = 0; j < NR; ++j) ws[j] = load(w + j * ldw + k);
#pragma GCC unroll 16
        for (int i = 0; i < TR; ++i) {
            const Lanes xs = load(x + i * ldx + k);
#pragma GCC unroll 16
            for (int j = 0; j < NR; ++j) strands[i][j] = fma(xs, ws[j], strands[i][j]);
        }
    }
    if (k < to) {
        Lanes ws[NR];
        for (int j = 0; j < NR; ++j) ws[j] = load_some(w + j * ldw + k, to - k);
        for (int i = 0; i < TR; ++i) {
            const Lanes xs = load_some(x + i * ldx + k, to - k);
            for (int j = 0; j < NR; ++j) strands[i][j] = fma(xs, ws[j], strands[i][j]);
        }
    }
    for (int i = 0; i < TR; ++i)
        for (int j = 0; j < NR; ++j) {
            if (last)
                target.put(t + i, n + j, strands[i][j]);
            else
                kept[i * NR + j] = strands[i][j];
        }
}

// The outputs n..end of TR rows, all inputs at once, NR at a time and then fewer.
template <int TR, int NR, class E>
inline void strip(const float* x, int64_t ldx, const E* w, int64_t ldw, int64_t K, const Target& target, int64_t t,
                  int64_t n, int64_t end) {
    for (; n + NR <= end; n += NR) tile<TR, NR>(x, ldx, w + n * ldw, ldw, 0, K, true, nullptr, target, t, n);
    if constexpr (NR > 1) {
        if (n < end) strip<TR, NR / 2>(x, ldx, w, ldw, K, target, t, n, end);
    }
}

template <class E>
inline void narrow(const float* x, int64_t ldx, int64_t T, const E* w, int64_t ldw, int64_t K, const Target& target,
                   int64_t count) {
    switch (T) {
        case 1: return strip<1, NARROW[1]>(x, ldx, w, ldw, K, target, 0, 0, count);
        case 2: return strip<2, NARROW[2]>(x, ldx, w, ldw, K, target, 0, 0, count);
        case 3: return strip<3, NARROW[3]>(x, ldx, w, ldw, K, target, 0, 0, count);
        default: return strip<4, NARROW[4]>(x, ldx, w, ldw, K, target, 0, 0, count);
    }
}

// One TR-row part of a block of x against `count` rows of w that follow one another.
template <int NR>
inline void part(int64_t rows, const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t from, int64_t to,
                 bool last, Lanes* kept, const Target& target, int64_t t, int64_t n) {
    switch (rows) {
        case 1: return tile<1, NR>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        case 2: return tile<2, NR>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        case 3: return tile<3, NR>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
        default: return tile<4, NR>(x, ldx, w, ldw, from, to, last, kept, target, t, n);
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

// All rows of x against a panel of `count` rows of w.
inline void panel(const float* x, int64_t ldx, int64_t T, const float* w, int64_t ldw, int64_t K, const Target& target,
                  int64_t first, int64_t count) {
    const int64_t pieces = std::max<int64_t>((K + DEPTH - 1) / DEPTH, 1);
    const int64_t depth = (K + pieces * LANES - 1) / (pieces * LANES) * LANES;
    constexpr int PARTS = (BLOCK + ROWS - 1) / ROWS;
    Lanes* kept = pieces > 1 ? scratch().strands((count + WIDE) * PARTS * ROWS) : nullptr;
    for (int64_t t = 0; t < T; t += BLOCK) {
        const int64_t t_end = std::min(T, t + BLOCK);
        for (int64_t from = 0; from < K || from == 0; from += depth) {
            const int64_t to = std::min(K, from + depth);
            const bool last = to == K;
            Lanes* at = kept;
            for (int64_t n = 0; n < count; n += WIDE)
                for (int64_t part_t = t; part_t < t_end; part_t += ROWS, at += kept ? ROWS * WIDE : 0) {
                    const int64_t rows = std::min<int64_t>(ROWS, t_end - part_t);
                    const float* xs = x + part_t * ldx;
                    if (n + WIDE <= count)
                        part<WIDE>(rows, xs, ldx, w + n * ldw, ldw, from, to, last, at, target, part_t, first + n);
                    else
                        for (int64_t one = n; one < count; ++one)
                            part<1>(rows, xs, ldx, w + one * ldw, ldw, from, to, last, at + (one - n) * ROWS, target,
                                    part_t, first + one);
                }
            if (last) break;
        }
    }
}

template <class E>
inline void unpack(const E* w, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Lanes v = load(w + i);
        std::memcpy(out + i, &v, sizeof v);
    }
    if (i < count) {
        const Lanes v = load_some(w + i, count - i);
        std::memcpy(out + i, &v, (count - i) * sizeof(float));
    }
}

template <class E>
inline void dense(const E* w, const float* x, int64_t ldx, int64_t T, int64_t K, const Target& target, int64_t count) {
    if (T <= ROWS) return narrow(x, ldx, T, w, K, K, target, count);
    const int64_t rows = panel_rows(K);
    for (int64_t first = 0; first < count; first += rows) {
        const int64_t some = std::min(rows, count - first);
        if constexpr (sizeof(E) == sizeof(float))
            panel(x, ldx, T, w + first * K, K, K, target, first, some);
        else {
            float* floats = scratch().floats(rows * K);
            unpack(w + first * K, some * K, floats);
            panel(x, ldx, T, floats, K, K, target, first, some);
        }
    }
}

}  // namespace products

// One thread's share n0..n1 of the outputs: y[t, n] (+)= sum_k x[t, k] w[n, k] + bias[n]. Rows of x are ldx floats apart,
// rows of y ldy. Shares may be cut anywhere: an output's bits do not depend on it.
inline void product(const Weight& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t n0, int64_t n1,
                    bool add) {
    using namespace products;
    if (T < 1 || n1 <= n0) return;
    const Target target{y + n0, ldy, w.bias ? w.bias + n0 : nullptr, add};
    const int64_t count = n1 - n0;
    switch (w.kind) {
        case F32: return dense(static_cast<const float*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        case BF16: return dense(static_cast<const bfloat16*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        case F16: return dense(static_cast<const float16*>(w.data) + n0 * w.K, x, ldx, T, w.K, target, count);
        default: std::abort();
    }
}
