// Attention of new tokens to what the blocks of their sequences hold: softmax(q k / sqrt(E)) v, block by block, in place.
//
//     unit = up to QUERIES tokens of one sequence x one key-value head      threads take units as they come
//     scores of TILE rows (query, head) at once, so that keys are loaded once for all of them; then exp, then the values
//
// The sum of a row runs over positions in an order that depends on the positions alone: chunks of a prompt, neighbours in the
// batch and sharing of blocks change no bit.
//
// Legend: S tokens of a block, G key-value heads, H query heads, E width of a head, p position.
#pragma once

#include <cmath>
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

constexpr int TILE = 4;      // rows (query, head) that share the loads of keys and values
constexpr int QUERIES = 32;  // tokens of a unit at most

inline Lanes load(const int8_t* p) {
    Bytes b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, Whole), Lanes);
}

inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

// exp to about 2 units in the last place (Cephes' polynomial); below -87 it is 0.
inline Lanes exponential(Lanes x) {
    const Lanes zero = Lanes{};
    const Whole far = x < (zero - 87.0f);
    x = (Lanes)(~far & (Whole)x);
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
    const void *keys, *values;                 // [blocks, S, G, E]
    const float *key_scales, *value_scales;    // [blocks, S, G], 8 bits only
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

// One tile: `rows` rows (query, head) against positions base..end of their sequence -> out.
template <class C>
inline void tile(const Heads& a, const int32_t* table, int64_t g, int rows, const float* const* q, float* const* out,
                 const int64_t* own, int64_t base, int64_t end, float* scores, int64_t ld) {
    const int64_t S = a.block_size, E = a.width, stride = a.groups * E;
    const C* keys = static_cast<const C*>(a.keys) + g * E;
    const C* values = static_cast<const C*>(a.values) + g * E;
    for (int64_t p = base; p < end;) {
        const int64_t slot = table[p / S] * S, stop = std::min(end, (p / S + 1) * S);
        for (; p < stop; ++p) {
            const int64_t place = slot + p % S;
            const C* k = keys + place * stride;
            Lanes sums[TILE] = {};
            for (int64_t e = 0; e < E; e += LANES) {
                const Lanes ks = load(k + e);
                for (int r = 0; r < TILE; ++r) sums[r] = fma(products::load(q[r] + e), ks, sums[r]);
            }
            const float scale = a.key_scales ? a.scale * a.key_scales[place * a.groups + g] : a.scale;
            for (int r = 0; r < TILE; ++r) scores[r * ld + p - base] = sum(sums[r]) * scale;
        }
    }
    float inverse[TILE];
    for (int r = 0; r < rows; ++r) {
        float* row = scores + r * ld;
        const int64_t size = end - base, padded = (size + LANES - 1) / LANES * LANES;
        const int64_t low = a.window ? std::max<int64_t>(base, own[r] - a.window + 1) - base : 0, high = own[r] + 1 - base;
        if (a.cap > 0)
            for (int64_t i = low; i < high; ++i) row[i] = a.cap * std::tanh(row[i] / a.cap);
        for (int64_t i = 0; i < low; ++i) row[i] = -INFINITY;
        for (int64_t i = high; i < padded; ++i) row[i] = -INFINITY;
        float largest = -INFINITY;
        for (int64_t i = low; i < high; ++i) largest = row[i] > largest ? row[i] : largest;
        Lanes total = {};
        for (int64_t i = 0; i < padded; i += LANES) {
            const Lanes odds = exponential(products::load(row + i) - largest);
            store(row + i, odds);
            total += odds;
        }
        inverse[r] = 1.0f / sum(total);
    }
    if (a.value_scales)
        for (int64_t p = base; p < end; ++p) {
            const float scale = a.value_scales[(table[p / S] * S + p % S) * a.groups + g];
            for (int r = 0; r < rows; ++r) scores[r * ld + p - base] *= scale;
        }
    constexpr int TWO = 2;
    for (int64_t e = 0; e < E; e += TWO * LANES) {
        const int parts = e + LANES < E ? TWO : 1;
        Lanes sums[TILE][TWO] = {};
        for (int64_t p = base; p < end;) {
            const int64_t slot = table[p / S] * S, stop = std::min(end, (p / S + 1) * S);
            for (; p < stop; ++p) {
                const C* v = values + (slot + p % S) * stride + e;
                const Lanes v0 = load(v), v1 = parts == TWO ? load(v + LANES) : Lanes{};
                for (int r = 0; r < TILE; ++r) {
                    const Lanes weight = Lanes{} + scores[r * ld + p - base];
                    sums[r][0] = fma(weight, v0, sums[r][0]);
                    sums[r][1] = fma(weight, v1, sums[r][1]);
                }
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < parts; ++i) store(out[r] + e + i * LANES, sums[r][i] * inverse[r]);
    }
}

// q and out are [T, H, E]; positions [T].
template <class C>
inline void unit(const Heads& a, const Unit& u, int64_t g, const float* q, float* out, const int32_t* positions) {
    const int64_t per_group = a.heads / a.groups, all = u.count * per_group, ld = positions[u.first + u.count - 1] + 2 * LANES + 1;
    auto& scores = scratch().scores;
    if ((int64_t)scores.size() < ld * TILE) scores.resize(ld * TILE);
    for (int64_t row = 0; row < all; row += TILE) {
        const int rows = std::min<int64_t>(TILE, all - row);
        const float* qs[TILE];
        float* outs[TILE];
        int64_t own[TILE], base = INT64_MAX, end = 0;
        for (int r = 0; r < TILE; ++r) {
            const int64_t at = row + std::min(r, rows - 1), t = u.first + at / per_group;
            const int64_t offset = (t * a.heads + g * per_group + at % per_group) * a.width;
            qs[r] = q + offset, outs[r] = out + offset, own[r] = positions[t];
            const int64_t low = a.window ? std::max<int64_t>(0, own[r] - a.window + 1) : 0;
            base = std::min(base, low / LANES * LANES), end = std::max(end, own[r] + 1);
        }
        tile<C>(a, u.table, g, rows, qs, outs, own, base, end, scores.data(), ld);
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

// Stores the key or value of one token and head (E numbers) where it belongs.
inline void write(const Heads& a, void* cells, float* scales, int64_t place, int64_t g, const float* x) {
    const int64_t E = a.width, at = (place * a.groups + g) * E;
    switch (a.stored) {
        case AS_FLOAT32: std::memcpy(static_cast<float*>(cells) + at, x, E * sizeof(float)); return;
        case AS_BFLOAT16:
            for (int64_t e = 0; e < E; ++e) {
                uint32_t bits;
                std::memcpy(&bits, x + e, 4);
                bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
                static_cast<uint16_t*>(cells)[at + e] = bits >> 16;
            }
            return;
        case AS_FLOAT16:
            for (int64_t e = 0; e < E; ++e) {
                const _Float16 half = (_Float16)x[e];
                std::memcpy(static_cast<uint16_t*>(cells) + at + e, &half, 2);
            }
            return;
        default: {
            float largest = 0;
            for (int64_t e = 0; e < E; ++e) largest = std::max(largest, std::fabs(x[e]));
            const float scale = largest / 127, divisor = std::max(scale, 1e-30f);
            scales[place * a.groups + g] = scale;
            for (int64_t e = 0; e < E; ++e) static_cast<int8_t*>(cells)[at + e] = (int8_t)std::nearbyint(x[e] / divisor);
        }
    }
}

}  // namespace attention
