// What the engine's C++ shares: weights as they lie in memory, their products, and vectors of LANES numbers.
//
// Weights are read where torch keeps them, [N, K] row by row, in one of the kinds below. The sum of one output runs in LANES
// strands along k, which are added in a fixed tree at the end: it does not depend on how many rows x has, on the place of a
// row, on the tile, or on which thread it falls to. A response is the same whatever it is batched with, bit for bit.
//
// Left out: packed copies of the weights (stale after every step of training); products of bfloat16 with bfloat16, which
// would round x for many rows and not for one.
#pragma once

#include <cstdint>
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

// One thread's share n0..n1 of the outputs: y[t, n] (+)= sum_k x[t, k] w[n, k] + bias[n]. Rows of x are ldx floats apart,
// rows of y ldy. Shares may be cut anywhere: an output's bits do not depend on it.
void product(const Weight& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t n0, int64_t n1, bool add);

namespace products {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

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

// Keeps a value in its register: the compiler would rather load it again for every use, and loads are what there is too few of.
inline void keep(Lanes& v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#else
    (void)v;
#endif
}

inline Lanes load(const float* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// 16-bit numbers to 32 bits.
inline Bits widen(const void* p) {
#if defined(__AVX512F__)
    return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, Bits);
#endif
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

}  // namespace products
