// 16 lanes in two 256-bit registers, with the names and the bits of avx512.h. Needs AVX2, FMA and F16C.
//
// Integer dot products are in dot_avx2.h, or in avx_vnni.h for processors with AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace hasten::HASTEN_ISA {

constexpr int kVectorRegisters = 8;  // F32x16 or I32x16 in the register file

// 16 floats; operators work per lane.
struct F32x16 {
    __m256 lo, hi;
};

inline F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 broadcast(float x) {
    const __m256 all = _mm256_set1_ps(x);
    return {all, all};
}
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 abs(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32x16 round(F32x16 a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }

inline __m256 pow2(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
inline __m256 scale_by_pow2(__m256 x, __m256 n) {
    // Two factors, since float arguments can need 2^128 or 2^-149; only the second product can round.
    const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-252.0f)), _mm256_set1_ps(254.0f)));
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, pow2(half)), pow2(_mm256_sub_epi32(whole, half)));
}
// x * 2^n for integer n in [-252, 254]; x and x * 2^(n / 2) are not subnormal.
inline F32x16 scale_by_pow2(F32x16 x, F32x16 n) { return {scale_by_pow2(x.lo, n.lo), scale_by_pow2(x.hi, n.hi)}; }

// All ones in the lanes whose bit is set, of the eight lanes from bit 0.
inline __m256i lane_mask(uint32_t bits) {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit), lane_bit);
}
// Lanes whose bit is set from a, the others from b.
inline F32x16 select(uint32_t bits, F32x16 a, F32x16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(lane_mask(bits))),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(lane_mask(bits >> 8)))};
}
// Lanes below n (0 to 16) from a, the others from b.
inline F32x16 blend_first(int n, F32x16 a, F32x16 b) { return select((1u << n) - 1, a, b); }
inline uint32_t mask_bits(__m256 lo, __m256 hi) {
    return static_cast<uint32_t>(_mm256_movemask_ps(lo)) | static_cast<uint32_t>(_mm256_movemask_ps(hi)) << 8;
}
inline uint32_t greater(F32x16 a, F32x16 b) {
    return mask_bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
}
inline uint32_t equal(F32x16 a, F32x16 b) {
    return mask_bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
}

inline F32x16 load_partial(const float* p, int n) {
    const uint32_t bits = (1u << n) - 1;
    return {_mm256_maskload_ps(p, lane_mask(bits)), _mm256_maskload_ps(p + 8, lane_mask(bits >> 8))};
}
inline void store_partial(float* p, int n, F32x16 a) {
    const uint32_t bits = (1u << n) - 1;
    _mm256_maskstore_ps(p, lane_mask(bits), a.lo);
    _mm256_maskstore_ps(p + 8, lane_mask(bits >> 8), a.hi);
}

// A fixed reduction tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1.
inline float reduce_add(F32x16 a) {
    const __m256 h = _mm256_add_ps(a.lo, a.hi);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float reduce_max(F32x16 a) {
    const __m256 h = _mm256_max_ps(a.lo, a.hi);
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}

// Load 16 consecutive values of another type, converted exactly.
inline __m256 widen_bf16(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline F32x16 load_bf16(const uint16_t* p) {
    const __m128i* in = reinterpret_cast<const __m128i*>(p);
    return {widen_bf16(_mm_loadu_si128(in)), widen_bf16(_mm_loadu_si128(in + 1))};
}
inline F32x16 load_f16(const uint16_t* p) {
    const __m128i* in = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(in)), _mm256_cvtph_ps(_mm_loadu_si128(in + 1))};
}
inline F32x16 load_s8(const int8_t* p) {
    const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(in)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(in, 8)))};
}

// Rounded to nearest, ties to even. NaN stays NaN.
inline __m256i round_to_bf16(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}
inline void store_bf16(uint16_t* p, F32x16 a) {
    const __m256i mixed = _mm256_packus_epi32(round_to_bf16(a.lo), round_to_bf16(a.hi));  // quarters 0, 2, 1, 3
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}
inline void store_f16(uint16_t* p, F32x16 a) {
    __m128i* out = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(out, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(out + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Rounded to nearest, ties to even; the caller keeps |a| <= 127.
inline void store_s8(int8_t* p, F32x16 a) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// 16 int32.
struct I32x16 {
    __m256i lo, hi;
};

inline I32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I32x16 broadcast_i32(int32_t x) {
    const __m256i all = _mm256_set1_epi32(x);
    return {all, all};
}
inline I32x16 load_i32(const void* p) {
    const __m256i* in = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1)};
}
inline void store_i32(void* p, I32x16 a) {
    __m256i* out = static_cast<__m256i*>(p);
    _mm256_storeu_si256(out, a.lo);
    _mm256_storeu_si256(out + 1, a.hi);
}
inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I32x16 operator-(I32x16 a, I32x16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I32x16 operator*(I32x16 a, I32x16 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline I32x16 operator&(I32x16 a, I32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I32x16 shift_right(I32x16 a, int bits) { return {_mm256_srli_epi32(a.lo, bits), _mm256_srli_epi32(a.hi, bits)}; }
inline I32x16 shift_left(I32x16 a, int bits) { return {_mm256_slli_epi32(a.lo, bits), _mm256_slli_epi32(a.hi, bits)}; }
inline I32x16 shift_right_signed(I32x16 a, int bits) { return {_mm256_srai_epi32(a.lo, bits), _mm256_srai_epi32(a.hi, bits)}; }
inline I32x16 operator^(I32x16 a, I32x16 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
// The low four bits of each lane, minus 8.
inline F32x16 nibble_to_float(I32x16 a) {
    const I32x16 value = (a & broadcast_i32(15)) - broadcast_i32(8);
    return {_mm256_cvtepi32_ps(value.lo), _mm256_cvtepi32_ps(value.hi)};
}
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline int32_t reduce_add(I32x16 a) {
    const __m256i h = _mm256_add_epi32(a.lo, a.hi);
    const __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    const __m128i d = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 0xb1)));
}

// 16 signed bytes, each in packed_nibbles 16-bit halves of a lane; 16-bit sums and products wrap.
inline __m256i duplicate_i16(__m256i a) { return _mm256_blend_epi16(a, _mm256_slli_epi32(a, 16), 0xaa); }
inline I32x16 load_s8_as_i16_pairs(const int8_t* p) {
    const __m128i in = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {duplicate_i16(_mm256_cvtepi8_epi32(in)), duplicate_i16(_mm256_cvtepi8_epi32(_mm_srli_si128(in, 8)))};
}
inline I32x16 broadcast_i16(int x) {
    const __m256i all = _mm256_set1_epi16(static_cast<int16_t>(x));
    return {all, all};
}
inline I32x16 add_i16(I32x16 a, I32x16 b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
inline I32x16 multiply_i16(I32x16 a, I32x16 b) { return {_mm256_mullo_epi16(a.lo, b.lo), _mm256_mullo_epi16(a.hi, b.hi)}; }

// Rounded to nearest, ties to even.
inline I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
// Reinterpret the bits.
inline I32x16 as_int(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32x16 as_float(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
// Maximum of non-negative lanes that propagates NaN.
inline __m256 max_nan(__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline F32x16 max_nan(F32x16 a, F32x16 b) { return {max_nan(a.lo, b.lo), max_nan(a.hi, b.hi)}; }
inline float reduce_max_nan(F32x16 a) {
    const __m256i h = _mm256_castps_si256(max_nan(a.lo, a.hi));
    const __m128i q = _mm_max_epu32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    const __m128i d = _mm_max_epu32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(d, _mm_shuffle_epi32(d, 0xb1))));
}

// Interleaves four rows of 64 bytes, `stride` apart, into quads: the four bytes of a column side by side. Lane 4 q + i of quads[c]
// is column 16 q + 4 c + i.
inline void load_interleaved_4x32(const char* p, int64_t stride, __m256i* quads) {
    __m256i in[4];
    for (int i = 0; i < 4; ++i) in[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * stride));
    const __m256i low[] = {_mm256_unpacklo_epi8(in[0], in[1]), _mm256_unpacklo_epi8(in[2], in[3])};
    const __m256i high[] = {_mm256_unpackhi_epi8(in[0], in[1]), _mm256_unpackhi_epi8(in[2], in[3])};
    quads[0] = _mm256_unpacklo_epi16(low[0], low[1]);
    quads[1] = _mm256_unpackhi_epi16(low[0], low[1]);
    quads[2] = _mm256_unpacklo_epi16(high[0], high[1]);
    quads[3] = _mm256_unpackhi_epi16(high[0], high[1]);
}
inline void load_interleaved_4x64(const void* rows, int64_t stride, I32x16* quads) {
    __m256i low[4], high[4];
    load_interleaved_4x32(static_cast<const char*>(rows), stride, low);
    load_interleaved_4x32(static_cast<const char*>(rows) + 32, stride, high);
    for (int c = 0; c < 4; ++c) quads[c] = {low[c], high[c]};
}
// Interleaves four rows of 16 bytes into quads, in order of the columns.
inline I32x16 load_interleaved_4x16(const void* rows, int64_t stride) {
    const char* p = static_cast<const char*>(rows);
    __m128i in[4];
    for (int i = 0; i < 4; ++i) in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride));
    const __m128i low[] = {_mm_unpacklo_epi8(in[0], in[1]), _mm_unpacklo_epi8(in[2], in[3])};
    const __m128i high[] = {_mm_unpackhi_epi8(in[0], in[1]), _mm_unpackhi_epi8(in[2], in[3])};
    return {_mm256_set_m128i(_mm_unpackhi_epi16(low[0], low[1]), _mm_unpacklo_epi16(low[0], low[1])),
            _mm256_set_m128i(_mm_unpackhi_epi16(high[0], high[1]), _mm_unpacklo_epi16(high[0], high[1]))};
}
// Transposes the 4 x 4 matrix of 128-bit quarters.
inline void transpose_quarters(I32x16* a) {
    const I32x16 b[] = {a[0], a[1], a[2], a[3]};
    const auto even = [](__m256i x, __m256i y) { return _mm256_permute2x128_si256(x, y, 0x20); };
    const auto odd = [](__m256i x, __m256i y) { return _mm256_permute2x128_si256(x, y, 0x31); };
    a[0] = {even(b[0].lo, b[1].lo), even(b[2].lo, b[3].lo)};
    a[1] = {odd(b[0].lo, b[1].lo), odd(b[2].lo, b[3].lo)};
    a[2] = {even(b[0].hi, b[1].hi), even(b[2].hi, b[3].hi)};
    a[3] = {odd(b[0].hi, b[1].hi), odd(b[2].hi, b[3].hi)};
}
// Merges the low bytes of 64 weights with the high bytes that their nibbles stand for, into two vectors of bf16 pairs.
inline void merge_bf16_bytes(__m256i low_bytes, __m256i nibbles, __m256i base, __m256i& first_pairs, __m256i& second_pairs) {
    const __m256i signs_and_codes = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121,  //
                                                     0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121);
    const __m256i has_code = _mm256_setr_epi8(0, -1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1,  //
                                              0, -1, -1, -1, -1, -1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bases = _mm256_and_si256(_mm256_shuffle_epi8(has_code, nibbles), base);
    const __m256i high_bytes = _mm256_add_epi8(_mm256_shuffle_epi8(signs_and_codes, nibbles), bases);
    first_pairs = _mm256_unpacklo_epi8(low_bytes, high_bytes);
    second_pairs = _mm256_unpackhi_epi8(low_bytes, high_bytes);
}
// Decompresses 128 weights (8 inputs of 16 outputs, kernels/bf16_compressed.h) to four vectors of bf16 pairs. base: exponent bases.
inline void decompress_bf16(const uint8_t* block, I32x16 base, I32x16* pairs) {
    const I32x16 packed_nibbles = load_i32(block + 128), low = broadcast_i32(0x0f0f0f0f);
    const I32x16 nibbles[] = {packed_nibbles & low, shift_right(packed_nibbles, 4) & low};
    for (int i = 0; i < 2; ++i) {
        const I32x16 lower = load_i32(block + 64 * i);
        merge_bf16_bytes(lower.lo, nibbles[i].lo, base.lo, pairs[2 * i].lo, pairs[2 * i + 1].lo);
        merge_bf16_bytes(lower.hi, nibbles[i].hi, base.hi, pairs[2 * i].hi, pairs[2 * i + 1].hi);
    }
}

// 8 uint64; sums and products wrap.
struct U64x8 {
    __m256i lo, hi;
};

inline U64x8 broadcast_u64(uint64_t x) {
    const __m256i all = _mm256_set1_epi64x(static_cast<int64_t>(x));
    return {all, all};
}
inline U64x8 load_u64(const uint64_t* p) {
    const __m256i* in = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1)};
}
// The low 64 bits of a product, from 32-bit products.
inline __m256i multiply_u64(__m256i a, __m256i b) {
    const __m256i crossed = _mm256_mullo_epi32(a, _mm256_shuffle_epi32(b, 0xb1));
    const __m256i upper = _mm256_slli_epi64(_mm256_add_epi32(crossed, _mm256_srli_epi64(crossed, 32)), 32);
    return _mm256_add_epi64(_mm256_mul_epu32(a, b), upper);
}
inline U64x8 operator+(U64x8 a, U64x8 b) { return {_mm256_add_epi64(a.lo, b.lo), _mm256_add_epi64(a.hi, b.hi)}; }
inline U64x8 operator*(U64x8 a, U64x8 b) { return {multiply_u64(a.lo, b.lo), multiply_u64(a.hi, b.hi)}; }
inline U64x8 operator^(U64x8 a, U64x8 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
inline U64x8 shift_right(U64x8 a, int bits) { return {_mm256_srli_epi64(a.lo, bits), _mm256_srli_epi64(a.hi, bits)}; }
inline uint32_t at_least(__m256i a, __m256i b) {
    const __m256i sign = _mm256_set1_epi64x(INT64_MIN);
    const __m256i less = _mm256_cmpgt_epi64(_mm256_xor_si256(b, sign), _mm256_xor_si256(a, sign));
    return ~static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(less))) & 15u;
}
inline uint32_t at_least(U64x8 a, U64x8 b) { return at_least(a.lo, b.lo) | at_least(a.hi, b.hi) << 4; }

}  // namespace hasten::HASTEN_ISA
