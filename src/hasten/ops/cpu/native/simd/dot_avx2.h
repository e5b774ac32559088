// Integer dot products with AVX2 alone. Bytes are widened to 16 bits, in which the sum of two byte products would overflow.
#pragma once

#include "avx2.h"

namespace hasten::HASTEN_ISA {

// acc + the four products of each lane: unsigned bytes of u times signed bytes of s. Exact.
inline __m256i dot4(__m256i acc, __m256i u, __m256i s) {
    const __m256i even_s = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), even_s);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
inline I32x16 dot4(I32x16 acc, I32x16 u, I32x16 s) { return {dot4(acc.lo, u.lo, s.lo), dot4(acc.hi, u.hi, s.hi)}; }

// Rows of signed activations times quads of unsigned weights, both as even and odd bytes widened to 16 bits.
constexpr int kRowQuadBytes = 8;  // of a packed row: bytes 0 and 2, then bytes 1 and 3, as 16-bit words
struct WeightQuads {
    I32x16 even, odd;
};
struct RowQuad {
    __m256i even, odd;
};
inline WeightQuads widen_quads(I32x16 quads) {
    return {quads & broadcast_i32(0x00ff00ff), {_mm256_srli_epi16(quads.lo, 8), _mm256_srli_epi16(quads.hi, 8)}};
}
inline WeightQuads load_weight_quads(const uint8_t* p) { return widen_quads(load_i32(p)); }
inline RowQuad load_row_quad(const char* p) {
    int32_t even, odd;
    memcpy(&even, p, 4);
    memcpy(&odd, p + 4, 4);
    return {_mm256_set1_epi32(even), _mm256_set1_epi32(odd)};
}
inline __m256i dot4(__m256i acc, __m256i even, __m256i odd, RowQuad s) {
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even, s.even), _mm256_madd_epi16(odd, s.odd)));
}
inline I32x16 dot4(I32x16 acc, const WeightQuads& u, RowQuad s) {
    return {dot4(acc.lo, u.even.lo, u.odd.lo, s), dot4(acc.hi, u.even.hi, u.odd.hi, s)};
}
// Four activations of 16 bits, in the order of RowQuad.
using Int16Quad = RowQuad;
inline Int16Quad load_int16_quad(const char* p) { return load_row_quad(p); }
// Sums of products of unsigned weights and such activations.
using Int16Sums = I32x16;
inline Int16Sums int16_sums(int32_t initial) { return broadcast_i32(initial); }
inline void add_products(Int16Sums& sums, const WeightQuads& u, const Int16Quad& s) { sums = dot4(sums, u, s); }
inline I32x16 total(const Int16Sums& sums) { return sums; }
// Stores 16 activations of 16 bits as four quads.
inline void store_int16_quads(uint8_t* out, I32x16 q) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(q.lo, q.hi), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(words, order));
}
// Packs a row of `bytes` bytes, a multiple of 16.
inline void pack_activation_row(const int8_t* row, int64_t bytes, int8_t* out) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (int64_t i = 0; i < bytes; i += 16) {
        const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(in, order)));
    }
}

// Sums of up to 16 products of nibbles (0 to 15) and signed bytes in each lane, and their products with group scales. Exact. A sum
// is the total of two 16-bit halves.
//
// initial_nibble_sum: the initial value of all lanes for sums that start at -8 * x, where x is a sum of 16 signed bytes.
inline int32_t initial_nibble_sum(int32_t x) { return static_cast<int32_t>((static_cast<uint32_t>(-4 * x) & 0xffff) * 0x10001u); }
inline I32x16 dot_nibbles(I32x16 sums, I32x16 nibbles, I32x16 s) {
    return add_i16(sums, {_mm256_maddubs_epi16(nibbles.lo, s.lo), _mm256_maddubs_epi16(nibbles.hi, s.hi)});
}
// Keeps the compiler from reassociating the sums, which would need more registers.
inline void prevent_reassociation(I32x16& sums) { asm("" : "+x"(sums.lo), "+x"(sums.hi)); }
inline I32x16 load_group_scales(const int8_t* p) { return load_s8_as_i16_pairs(p); }
inline I32x16 add_scaled_sums(I32x16 acc, I32x16 sums, I32x16 scales) {
    return acc + I32x16{_mm256_madd_epi16(sums.lo, scales.lo), _mm256_madd_epi16(sums.hi, scales.hi)};
}

// Products of value bytes with 15-bit softmax weights (0 to 32,767). Both are 16-bit words in the order of WeightQuads. Sums of 512
// products are below 2^31.
constexpr int kWeightPlanes = 1;
using ValueWeights = RowQuad;
using ValueQuads = WeightQuads;
inline void store_weights(uint8_t* out, const I32x16* n) {
    // Reorders each four lanes a, b, c, d to a, c, b, d.
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (int i = 0; i < 4; ++i, out += 32) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(n[i].lo, n[i].hi), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(words, order));
    }
}
inline ValueWeights load_weights(const uint8_t* weights, int, int quad) {
    return load_row_quad(reinterpret_cast<const char*>(weights) + quad * kRowQuadBytes);
}
inline ValueQuads value_quads(I32x16 bytes) {
    return {{_mm256_srai_epi16(_mm256_slli_epi16(bytes.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(bytes.hi, 8), 8)},
            {_mm256_srai_epi16(bytes.lo, 8), _mm256_srai_epi16(bytes.hi, 8)}};
}
inline I32x16 add_weighted(I32x16 acc, ValueWeights w, const ValueQuads& v) { return dot4(acc, v, w); }
inline int32_t extract_weight(uint8_t* weights, int64_t i) {
    uint8_t* const at = weights + i / 4 * kRowQuadBytes + i % 2 * 4 + i % 4 / 2 * 2;
    int16_t taken;
    memcpy(&taken, at, 2);
    memset(at, 0, 2);
    return taken;
}
inline void add_products(int32_t* sums, int64_t, int32_t weight, I32x16 values) {
    store_i32(sums, load_i32(sums) + broadcast_i32(weight) * values);
}
inline F32x16 combine_planes(const int32_t* sums, int64_t) { return to_float(load_i32(sums)); }

}  // namespace hasten::HASTEN_ISA
