// Low-bit kinds of weights (models/lowbit.py): what their codes stand for, a vector of LANES floats at a time.
//
// Codes of UNIT inputs stand together. A byte of four-bit codes holds input i in its low half and input i + 16 in its high
// one, so that LANES inputs that follow one another are unpacked by one shift or mask. Each group of inputs has a scale,
// and maybe a zero. Every weight is made a float, the same for one row of x and for many.
//
// Left out: other layouts of codes than the one of our own files.
#pragma once

#include "products.hpp"

namespace products {

constexpr int UNIT = 32, VECTORS = UNIT / LANES;

inline Bits widen_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
    return (Bits)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
    return (Bits)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    typedef uint8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Bits);
#endif
}

typedef int32_t Whole __attribute__((vector_size(LANES * 4)));

inline Lanes number(Bits code) { return __builtin_convertvector((Whole)code, Lanes); }

// Each kind makes the UNIT inputs of one row floats, in vectors that follow one another.
struct Int8 {
    static constexpr int BYTES = UNIT;
    static constexpr float ZERO = 0;
    static void values(const uint8_t* unit, Lanes scale, Lanes, Lanes (&out)[VECTORS]) {
#pragma GCC unroll 32
        for (int i = 0; i < VECTORS; ++i)
            out[i] = number((Bits)((Whole)(widen_bytes(unit + i * LANES) << 24) >> 24)) * scale;
    }
};

struct Int4 {
    static constexpr int BYTES = UNIT / 2;
    static constexpr float ZERO = 8;
    static void values(const uint8_t* unit, Lanes scale, Lanes zero, Lanes (&out)[VECTORS]) {
#pragma GCC unroll 32
        for (int i = 0; i < VECTORS / 2; ++i) {
            const Bits both = widen_bytes(unit + i * LANES);
            out[i] = (number(both & 15) - zero) * scale;
            out[i + VECTORS / 2] = (number(both >> 4) - zero) * scale;
        }
    }
};

// Normal Float 4 (QLoRA, 2305.14314, appendix E).
constexpr float NORMAL_FLOAT[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

#if defined(__AVX2__) && !defined(__AVX512F__)
// The same, byte by byte: the first line holds the lowest byte of each.
constexpr uint8_t NORMAL_FLOAT_BYTES[4][16] = {
    {0x00, 0xb1, 0x30, 0xa0, 0x4d, 0x3f, 0x71, 0x00, 0xff, 0xe3, 0xdd, 0x3a, 0xb8, 0xab, 0xb3, 0x00},
    {0x00, 0x39, 0x6b, 0x32, 0xa2, 0x35, 0x78, 0x00, 0xfa, 0xca, 0x04, 0x03, 0xa4, 0x07, 0x13, 0x00},
    {0x80, 0x32, 0x06, 0xca, 0x91, 0x3d, 0xba, 0x00, 0xa2, 0x24, 0x7c, 0xad, 0xe1, 0x10, 0x39, 0x80},
    {0xbf, 0xbf, 0xbf, 0xbe, 0xbe, 0xbe, 0xbd, 0x00, 0x3d, 0x3e, 0x3e, 0x3e, 0x3e, 0x3f, 0x3f, 0x3f}};
#endif

struct NormalFloat {
    static constexpr int BYTES = UNIT / 2;
    static constexpr float ZERO = 0;
    static void values(const uint8_t* unit, Lanes scale, Lanes, Lanes (&out)[VECTORS]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
        // 32 codes at once: a table of bytes for each of a float's four, then put together again
        const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(unit));
        const __m256i code = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
        __m256i byte[4];
#pragma GCC unroll 32
        for (int i = 0; i < 4; ++i)
            byte[i] = _mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(NORMAL_FLOAT_BYTES[i]))), code);
        const __m256i low[2] = {_mm256_unpacklo_epi8(byte[0], byte[1]), _mm256_unpackhi_epi8(byte[0], byte[1])};
        const __m256i high[2] = {_mm256_unpacklo_epi8(byte[2], byte[3]), _mm256_unpackhi_epi8(byte[2], byte[3])};
#pragma GCC unroll 32
        for (int i = 0; i < 2; ++i) {  // four floats of inputs 8 i.. | four of inputs 16 + 8 i.., then the four behind each
            const __m256i first = _mm256_unpacklo_epi16(low[i], high[i]), second = _mm256_unpackhi_epi16(low[i], high[i]);
            const __m256i middle = _mm256_permute2x128_si256(first, second, 0x21);
            out[i] = (Lanes)_mm256_blend_epi32(first, middle, 0xf0) * scale;
            out[i + 2] = (Lanes)_mm256_blend_epi32(middle, second, 0xf0) * scale;
        }
#else
#pragma GCC unroll 32
        for (int i = 0; i < VECTORS / 2; ++i) {
            const Bits both = widen_bytes(unit + i * LANES);
            out[i] = level(both & 15) * scale;
            out[i + VECTORS / 2] = level(both >> 4) * scale;
        }
#endif
    }
#if defined(__AVX512F__)
    static Lanes level(Bits code) { return (Lanes)_mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(NORMAL_FLOAT)); }
#else
    static Lanes level(Bits code) {
        Lanes values = {};
        for (int i = 0; i < LANES; ++i) values[i] = NORMAL_FLOAT[code[i]];
        return values;
    }
#endif
};

}  // namespace products
