// Attention of new tokens to what the blocks of their sequences hold: softmax(q k / sqrt(E)) v, block by block, in place.
//
//     unit = up to QUERIES tokens of one sequence x one key-value head      threads take units as they come
//     rows (query, head) go 4, 2 or 1 at a time, so that keys and values are loaded once for all of them
//     keys lie [E, S] in a block: the products of a vector of positions run side by side; values lie [S, E]
//
// Every sum of a row runs over positions and numbers in an order of its own: chunks of a prompt, neighbours in the batch,
// the size of blocks and their sharing change no bit.
//
// Legend: S tokens of a block, G key-value heads, H query heads, E width of a head, R rows, p position.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "products.hpp"

enum Stored : int32_t { AS_FLOAT32, AS_BFLOAT16, AS_FLOAT16, AS_INT8 };

namespace attention {

using products::bfloat16;
using products::float16;
using products::fma;
using products::Lanes;
using products::LANES;
using products::load;
using products::sum;

typedef int32_t Whole __attribute__((vector_size(LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

constexpr int QUERIES = 32;  // tokens of a unit at most

inline Lanes load(const int8_t* p) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    Bytes b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, Whole), Lanes);
#endif
}

inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

// exp to about 2 units in the last place (Cephes' polynomial); below -87 it is 0, above 88 it is exp(88).
inline Lanes exponential(Lanes x) {
    const Lanes zero = Lanes{};
    const Whole far = x < (zero - 87.0f), high = x > (zero + 88.0f);
    x = (Lanes)((~(far | high) & (Whole)x) | (high & (Whole)(zero + 88.0f)));
    const Lanes magic = zero + 12582912.0f;  // adding it rounds to a whole number
    const Lanes n = fma(x, zero + 1.44269504f, magic) - magic;
    Lanes r = fma(n, zero - 0.693359375f, x);
    r = fma(n, zero + 2.12194440e-4f, r);
    Lanes p = zero + 1.9875691500e-4f;
    p = fma(p, r, zero + 1.3981999507e-3f);
    p = fma(p, r, zero + 8.3334519073e-3f);
    p = fma(p, r, zero + 4.1665795894e-2f);
    p = fma(p, r, zero + 1.6666665459e-1f);
    p = fma(p, r, zero + 5.0000001201e-1f);
    p = fma(p, r * r, r + 1.0f);
    const Whole power = __builtin_convertvector(n, Whole) + 127;
    const Lanes two_to_n = (Lanes)(power << 23);
    return (Lanes)(~far & (Whole)(p * two_to_n));
}

// What one layer's attention has to know.
struct Heads {
    int64_t heads, groups, width, block_size;
    float scale, cap;   // cap 0: none
    int64_t window;     // 0: none
    int32_t stored;
    const void *keys, *values;               // [blocks, G, E, S] and [blocks, G, S, E]
    const float *key_scales, *value_scales;  // [blocks, G, S], 8 bits only
};

// Queries first..first+count of the stream, all of one sequence, consecutive.
struct Unit {
    int64_t first, count;
    const int32_t* table;
};

struct Scratch {
    std::vector<float> scores;
};

inline Scratch& scratch() {
    static thread_local Scratch one;
    return one;
}

inline float one(const float* p) { return *p; }
inline float one(const int8_t* p) { return *p; }
inline float one(const bfloat16* p) {
    const uint32_t bits = (uint32_t)p->bits << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float one(const float16* p) {
    _Float16 half;
    std::memcpy(&half, p, 2);
    return half;
}

// Products of R rows with the keys of one block [E, S]. Even and odd numbers of a head are added up apart, then together.
// `next` is fetched on the way: blocks lie anywhere, so the processor cannot guess it.
template <int R, class C>
inline void products_of(const C* k, const C* next, const float* const* q, int64_t E, int64_t S, float* const* out) {
    constexpr int WIDE = R == 4 ? 1 : 2;
    int64_t s = 0;
    auto vectors = [&](auto wide) {
        constexpr int N = decltype(wide)::value;
        for (; s + N * LANES <= S; s += N * LANES) {
            Lanes even[R][N] = {}, odd[R][N] = {};
            for (int64_t e = 0; e < E; e += 2) {
                const C *k0 = k + e * S + s, *k1 = k0 + S;
                __builtin_prefetch(next + e * S + s);
                __builtin_prefetch(next + (e + 1) * S + s);
                for (int n = 0; n < N; ++n) {
                    const Lanes a = load(k0 + n * LANES), b = load(k1 + n * LANES);
                    for (int r = 0; r < R; ++r) {
                        even[r][n] = fma(Lanes{} + q[r][e], a, even[r][n]);
                        odd[r][n] = fma(Lanes{} + q[r][e + 1], b, odd[r][n]);
                    }
                }
            }
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) store(out[r] + s + n * LANES, even[r][n] + odd[r][n]);
        }
    };
    vectors(std::integral_constant<int, WIDE>{});
    if constexpr (WIDE > 1) vectors(std::integral_constant<int, 1>{});
    for (; s < S; ++s)  // blocks of another size than whole vectors
        for (int r = 0; r < R; ++r) {
            float even = 0, odd = 0;
            for (int64_t e = 0; e < E; e += 2) {
                even = std::fma(q[r][e], one(k + e * S + s), even);
                odd = std::fma(q[r][e + 1], one(k + (e + 1) * S + s), odd);
            }
            out[r][s] = even + odd;
        }
}

inline Lanes larger(Lanes a, Lanes b) {
    const Whole first = a > b;
    return (Lanes)((first & (Whole)a) | (~first & (Whole)b));
}

// Scores of one row to the odds of its positions, times 1 / their sum. Positions below `low` and from `high` on are not seen.
inline float odds(float* row, int64_t low, int64_t high, int64_t padded, float cap) {
    if (cap > 0)
        for (int64_t i = low; i < high; ++i) row[i] = cap * std::tanh(row[i] / cap);
    for (int64_t i = 0; i < low; ++i) row[i] = -INFINITY;
    for (int64_t i = high; i < padded; ++i) row[i] = -INFINITY;
    Lanes most = Lanes{} - INFINITY;
    for (int64_t i = low / LANES * LANES; i < high; i += LANES) most = larger(most, products::load(row + i));
    float largest = most[0];
    for (int i = 1; i < LANES; ++i) largest = most[i] > largest ? most[i] : largest;
    Lanes total = {};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Lanes one = exponential(products::load(row + i) - largest);
        store(row + i, one);
        total += one;
    }
    return 1.0f / sum(total);
}

// The values of one block under the odds of R rows, N vectors of a head from e on.
template <int R, int N, class C>
inline void weigh(const C* v, const C* next, int64_t E, int64_t count, const float* const* odds, int64_t shift, Lanes (*sums)[N]) {
    for (int64_t s = 0; s < count; ++s) {
        Lanes vs[N];
        for (int n = 0; n < N; ++n) vs[n] = load(v + s * E + n * LANES);
        for (size_t n = 0; n < N * LANES * sizeof(C); n += 64) __builtin_prefetch(reinterpret_cast<const char*>(next + s * E) + n);
        for (int r = 0; r < R; ++r) {
            const Lanes odd = Lanes{} + odds[r][s + shift];
            for (int n = 0; n < N; ++n) sums[r][n] = fma(odd, vs[n], sums[r][n]);
        }
    }
}

// R rows (query, head) of one sequence and key-value head against positions base..end -> out.
template <int R, class C>
inline void tile(const Heads& a, const int32_t* table, int64_t g, const float* const* q, float* const* out, const int64_t* own,
                 int64_t base, int64_t end, float* memory, int64_t ld) {
    const int64_t S = a.block_size, E = a.width, size = E * S, padded = (end - base + LANES - 1) / LANES * LANES;
    const C *keys = static_cast<const C*>(a.keys), *values = static_cast<const C*>(a.values);
    float* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = memory + r * ld;
    for (int64_t p = base; p < end; p += S) {
        const int64_t cell = table[p / S] * a.groups + g;
        float* block[R];
        for (int r = 0; r < R; ++r) block[r] = rows[r] + p - base;
        const int64_t after = p + S < end ? table[p / S + 1] * a.groups + g : cell;
        products_of<R>(keys + cell * size, keys + after * size, q, E, S, block);
        for (int r = 0; r < R; ++r)
            for (int64_t s = 0; s < S; ++s) block[r][s] *= a.key_scales ? a.scale * a.key_scales[cell * S + s] : a.scale;
    }
    float inverse[R];
    for (int r = 0; r < R; ++r) {
        const int64_t low = a.window ? std::max<int64_t>(base, own[r] - a.window + 1) - base : 0;
        inverse[r] = odds(rows[r], low, own[r] + 1 - base, padded, a.cap);
    }
    if (a.value_scales)
        for (int64_t p = base; p < end; ++p) {
            const float scale = a.value_scales[(table[p / S] * a.groups + g) * S + p % S];
            for (int r = 0; r < R; ++r) rows[r][p - base] *= scale;
        }
    int64_t e = 0;
    auto vectors = [&](auto wide) {
        constexpr int N = decltype(wide)::value;
        for (; e + N * LANES <= E; e += N * LANES) {
            Lanes sums[R][N] = {};
            for (int64_t p = base; p < end; p += S) {
                const int64_t cell = table[p / S] * a.groups + g, after = p + S < end ? table[p / S + 1] * a.groups + g : cell;
                weigh<R, N>(values + cell * size + e, values + after * size + e, E, std::min(S, end - p), rows, p - base, sums);
            }
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) store(out[r] + e + n * LANES, sums[r][n] * inverse[r]);
        }
    };
    vectors(std::integral_constant<int, 8 / R>{});
    vectors(std::integral_constant<int, 1>{});
    for (; e < E; ++e)  // a head that is no whole number of vectors
        for (int r = 0; r < R; ++r) {
            float value = 0;
            for (int64_t p = base; p < end; ++p)
                value = std::fma(rows[r][p - base], one(values + (table[p / S] * a.groups + g) * size + p % S * E + e), value);
            out[r][e] = value * inverse[r];
        }
}

// q and out are [T, H, E]; positions [T].
template <class C>
inline void unit(const Heads& a, const Unit& u, int64_t g, const float* q, float* out, const int32_t* positions) {
    const int64_t per_group = a.heads / a.groups, all = u.count * per_group, S = a.block_size;
    const int64_t align = S % LANES ? S * LANES : S, ld = positions[u.first + u.count - 1] + S + 2 * LANES;
    auto& scores = scratch().scores;
    if ((int64_t)scores.size() < ld * 4) scores.resize(ld * 4);
    for (int64_t row = 0; row < all;) {
        const int rows = all - row >= 4 ? 4 : all - row >= 2 ? 2 : 1;
        const float* qs[4];
        float* outs[4];
        int64_t own[4], base = INT64_MAX, end = 0;
        for (int r = 0; r < rows; ++r) {
            const int64_t t = u.first + (row + r) / per_group;
            const int64_t offset = (t * a.heads + g * per_group + (row + r) % per_group) * a.width;
            qs[r] = q + offset, outs[r] = out + offset, own[r] = positions[t];
            const int64_t low = a.window ? std::max<int64_t>(0, own[r] - a.window + 1) : 0;
            base = std::min(base, low / align * align), end = std::max(end, own[r] + 1);
        }
        switch (rows) {
            case 4: tile<4, C>(a, u.table, g, qs, outs, own, base, end, scores.data(), ld); break;
            case 2: tile<2, C>(a, u.table, g, qs, outs, own, base, end, scores.data(), ld); break;
            default: tile<1, C>(a, u.table, g, qs, outs, own, base, end, scores.data(), ld);
        }
        row += rows;
    }
}

inline void attend(const Heads& a, const Unit& u, int64_t g, const float* q, float* out, const int32_t* positions) {
    switch (a.stored) {
        case AS_FLOAT32: return unit<float>(a, u, g, q, out, positions);
        case AS_BFLOAT16: return unit<bfloat16>(a, u, g, q, out, positions);
        case AS_FLOAT16: return unit<float16>(a, u, g, q, out, positions);
        default: return unit<int8_t>(a, u, g, q, out, positions);
    }
}

// Stores the key (stride S) or value (stride 1) of one token and head (E numbers) from `at` on.
inline void write(const Heads& a, void* cells, float* scale_at, int64_t at, int64_t stride, const float* x) {
    const int64_t E = a.width;
    switch (a.stored) {
        case AS_FLOAT32:
            for (int64_t e = 0; e < E; ++e) static_cast<float*>(cells)[at + e * stride] = x[e];
            return;
        case AS_BFLOAT16:
            for (int64_t e = 0; e < E; ++e) {
                uint32_t bits;
                std::memcpy(&bits, x + e, 4);
                bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
                static_cast<uint16_t*>(cells)[at + e * stride] = bits >> 16;
            }
            return;
        case AS_FLOAT16:
            for (int64_t e = 0; e < E; ++e) {
                const _Float16 half = (_Float16)x[e];
                std::memcpy(static_cast<uint16_t*>(cells) + at + e * stride, &half, 2);
            }
            return;
        default: {
            float largest = 0;
            for (int64_t e = 0; e < E; ++e) largest = std::max(largest, std::fabs(x[e]));
            const float scale = largest / 127, divisor = std::max(scale, 1e-30f);
            *scale_at = scale;
            for (int64_t e = 0; e < E; ++e) static_cast<int8_t*>(cells)[at + e * stride] = (int8_t)std::nearbyint(x[e] / divisor);
        }
    }
}

}  // namespace attention
