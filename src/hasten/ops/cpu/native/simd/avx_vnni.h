// Integer dot products with AVX2 and AVX-VNNI: those of avx512.h in two halves.
#pragma once

#include "avx2.h"

namespace hasten::HASTEN_ISA {

// acc + the four products of each lane: unsigned bytes of u times signed bytes of s. Exact.
inline I32x16 dot4(I32x16 acc, I32x16 u, I32x16 s) {
    return {_mm256_dpbusd_avx_epi32(acc.lo, u.lo, s.lo), _mm256_dpbusd_avx_epi32(acc.hi, u.hi, s.hi)};
}

// Group scales for the sums of dot_vnni.h, and their products.
inline I32x16 load_group_scales(const int8_t* p) {  // in the low half of each lane, zero in the high half
    const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return broadcast_i32(0xffff) & I32x16{_mm256_cvtepi8_epi32(in), _mm256_cvtepi8_epi32(_mm_srli_si128(in, 8))};
}
inline I32x16 add_scaled_sums(I32x16 acc, I32x16 sums, I32x16 scales) {
    return {_mm256_dpwssd_avx_epi32(acc.lo, sums.lo, scales.lo), _mm256_dpwssd_avx_epi32(acc.hi, sums.hi, scales.hi)};
}

// The low bytes of 16 lanes.
inline __m128i low_bytes(I32x16 a) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(a.lo, byte), _mm256_and_si256(a.hi, byte));
    const __m256i in_order = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1));
}
// Stores 16 activations of 16 bits as four quads: the upper bytes of four, rounded, then their lower bytes.
inline void store_int16_quads(uint8_t* out, I32x16 q) {
    const __m128i high = low_bytes(shift_right(q + broadcast_i32(128), 8)), low = low_bytes(q);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi32(high, low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi32(high, low));
}

// Stores 64 weights in the layout of dot_vnni.h.
inline void store_weights(uint8_t* out, const I32x16* n) {
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    for (int i = 0; i < 4; i += 2, out += 32) {
        const __m256i a = _mm256_permute4x64_epi64(_mm256_packus_epi32(n[i].lo, n[i].hi), 0xd8);
        const __m256i b = _mm256_permute4x64_epi64(_mm256_packus_epi32(n[i + 1].lo, n[i + 1].hi), 0xd8);
        const __m256i upper = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        const __m256i lower = _mm256_packus_epi16(_mm256_and_si256(a, low_byte), _mm256_and_si256(b, low_byte));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(upper, 0xd8));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64), _mm256_permute4x64_epi64(lower, 0xd8));
    }
}

}  // namespace hasten::HASTEN_ISA

#include "dot_vnni.h"
