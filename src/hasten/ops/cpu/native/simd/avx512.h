// 16 lanes in one 512-bit register. avx2.h has the same names over two 256-bit registers, so that kernels are written once. Needs
// AVX-512 F, BW, DQ, VL and VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace hasten::HASTEN_ISA {

constexpr int kVectorRegisters = 32;  // F32x16 or I32x16 in the register file

// 16 floats; operators work per lane.
struct F32x16 {
    __m512 v;
};

inline F32x16 zero() { return {_mm512_setzero_ps()}; }
inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c, rounded once
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 round(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}  // ties to even
inline F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }

// x * 2^n for integer n.
inline F32x16 scale_by_pow2(F32x16 x, F32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }

// Lanes below n (0 to 16) from a, the others from b.
inline F32x16 blend_first(int n, F32x16 a, F32x16 b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), b.v, a.v)};
}
// Lanes whose bit is set from a, the others from b.
inline F32x16 select(uint32_t bits, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(static_cast<__mmask16>(bits), b.v, a.v)}; }
inline uint32_t greater(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint32_t equal(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }

inline F32x16 load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)}; }
inline void store_partial(float* p, int n, F32x16 a) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v); }

// A fixed reduction tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1.
inline float reduce_add(F32x16 a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

// Load 16 consecutive values of another type, converted exactly.
inline F32x16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F32x16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline F32x16 load_s8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// Rounded to nearest, ties to even. NaN stays NaN.
inline void store_bf16(uint16_t* p, F32x16 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}
inline void store_f16(uint16_t* p, F32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Rounded to nearest, ties to even; the caller keeps |a| <= 127.
inline void store_s8(int8_t* p, F32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

// 16 int32.
struct I32x16 {
    __m512i v;
};

inline I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32x16 broadcast_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32x16 load_i32(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i32(void* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32x16 operator*(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 shift_right(I32x16 a, int bits) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I32x16 shift_left(I32x16 a, int bits) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I32x16 shift_right_signed(I32x16 a, int bits) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
// The low four bits of each lane, minus 8.
inline F32x16 nibble_to_float(I32x16 a) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(a.v, values)};
}
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline int32_t reduce_add(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }

// acc + the four products of each lane: unsigned bytes of u times signed bytes of s. Exact.
inline I32x16 dot4(I32x16 acc, I32x16 u, I32x16 s) { return {_mm512_dpbusd_epi32(acc.v, u.v, s.v)}; }

// 16 signed bytes, each in packed_nibbles 16-bit halves of a lane; 16-bit sums and products wrap.
inline I32x16 load_s8_as_i16_pairs(const int8_t* p) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm512_mask_blend_epi16(0xaaaaaaaa, wide, _mm512_slli_epi32(wide, 16))};
}
inline I32x16 broadcast_i16(int x) { return {_mm512_set1_epi16(static_cast<int16_t>(x))}; }
inline I32x16 add_i16(I32x16 a, I32x16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline I32x16 multiply_i16(I32x16 a, I32x16 b) { return {_mm512_mullo_epi16(a.v, b.v)}; }

// Group scales for the sums of dot_vnni.h, and their products.
inline I32x16 load_group_scales(const int8_t* p) {  // in the low half of each lane, zero in the high half
    return broadcast_i32(0xffff) & I32x16{_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32x16 add_scaled_sums(I32x16 acc, I32x16 sums, I32x16 scales) { return {_mm512_dpwssd_epi32(acc.v, sums.v, scales.v)}; }

// Rounded to nearest, ties to even.
inline I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
// Reinterpret the bits.
inline I32x16 as_int(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline F32x16 as_float(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
// Maximum of non-negative lanes that propagates NaN.
inline F32x16 max_nan(F32x16 a, F32x16 b) {
    return {_mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
inline float reduce_max_nan(F32x16 a) {
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_castps_si512(a.v));
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Interleaves four rows of 64 bytes, `stride` apart, into quads: the four bytes of a column side by side. Lane 4 q + i of quads[c]
// is column 16 q + 4 c + i.
inline void load_interleaved_4x64(const void* rows, int64_t stride, I32x16* quads) {
    const char* p = static_cast<const char*>(rows);
    const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + stride);
    const __m512i c = _mm512_loadu_si512(p + 2 * stride), d = _mm512_loadu_si512(p + 3 * stride);
    const __m512i low[] = {_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d)};
    const __m512i high[] = {_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)};
    quads[0].v = _mm512_unpacklo_epi16(low[0], low[1]);
    quads[1].v = _mm512_unpackhi_epi16(low[0], low[1]);
    quads[2].v = _mm512_unpacklo_epi16(high[0], high[1]);
    quads[3].v = _mm512_unpackhi_epi16(high[0], high[1]);
}
// Interleaves four rows of 16 bytes into quads, in order of the columns.
inline I32x16 load_interleaved_4x16(const void* rows, int64_t stride) {
    const char* p = static_cast<const char*>(rows);
    __m128i in[4];
    for (int i = 0; i < 4; ++i) in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride));
    const __m128i low[] = {_mm_unpacklo_epi8(in[0], in[1]), _mm_unpacklo_epi8(in[2], in[3])};
    const __m128i high[] = {_mm_unpackhi_epi8(in[0], in[1]), _mm_unpackhi_epi8(in[2], in[3])};
    const __m256i first_half = _mm256_set_m128i(_mm_unpackhi_epi16(low[0], low[1]), _mm_unpacklo_epi16(low[0], low[1]));
    const __m256i last_half = _mm256_set_m128i(_mm_unpackhi_epi16(high[0], high[1]), _mm_unpacklo_epi16(high[0], high[1]));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(first_half), last_half, 1)};
}
// Transposes the 4 x 4 matrix of 128-bit quarters.
inline void transpose_quarters(I32x16* a) {
    const __m512i even[] = {_mm512_shuffle_i32x4(a[0].v, a[1].v, 0x88), _mm512_shuffle_i32x4(a[2].v, a[3].v, 0x88)};
    const __m512i odd[] = {_mm512_shuffle_i32x4(a[0].v, a[1].v, 0xdd), _mm512_shuffle_i32x4(a[2].v, a[3].v, 0xdd)};
    a[0].v = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
    a[1].v = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
    a[2].v = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
    a[3].v = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
}
// Stores 64 weights in the layout of dot_vnni.h.
inline void store_weights(uint8_t* out, const I32x16* n) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_packus_epi32(n[0].v, n[1].v), b = _mm512_packus_epi32(n[2].v, n[3].v);
    const __m512i low_byte = _mm512_set1_epi16(0xff);
    const __m512i high_bytes = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
    const __m512i lower = _mm512_packus_epi16(_mm512_and_si512(a, low_byte), _mm512_and_si512(b, low_byte));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, high_bytes));
    _mm512_storeu_si512(out + 64, _mm512_permutexvar_epi32(order, lower));
}

// Stores 16 activations of 16 bits as four quads: the upper bytes of four, rounded, then their lower bytes.
inline void store_int16_quads(uint8_t* out, I32x16 q) {
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(q.v, _mm512_set1_epi32(128)), 8));
    const __m128i low = _mm512_cvtepi32_epi8(q.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi32(high, low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi32(high, low));
}

// Decompresses 128 weights (8 inputs of 16 outputs, kernels/bf16_compressed.h) to four vectors of bf16 pairs. base: exponent bases.
inline void decompress_bf16(const uint8_t* block, I32x16 base, I32x16* pairs) {
    const __m512i signs_and_codes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121));
    const __m512i nibble = _mm512_set1_epi8(0x0f), code = _mm512_set1_epi8(0x07);
    const __m512i packed_nibbles = _mm512_loadu_si512(block + 128);
    const __m512i nibbles[] = {_mm512_and_si512(packed_nibbles, nibble),
                               _mm512_and_si512(_mm512_srli_epi16(packed_nibbles, 4), nibble)};
    for (int i = 0; i < 2; ++i) {
        const __m512i low_bytes = _mm512_loadu_si512(block + 64 * i);
        const __m512i sign_and_code = _mm512_shuffle_epi8(signs_and_codes, nibbles[i]);
        const __m512i high_bytes =
            _mm512_mask_add_epi8(sign_and_code, _mm512_test_epi8_mask(nibbles[i], code), sign_and_code, base.v);
        pairs[2 * i].v = _mm512_unpacklo_epi8(low_bytes, high_bytes);
        pairs[2 * i + 1].v = _mm512_unpackhi_epi8(low_bytes, high_bytes);
    }
}

// 8 uint64; sums and products wrap.
struct U64x8 {
    __m512i v;
};

inline U64x8 broadcast_u64(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
inline U64x8 load_u64(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
inline U64x8 operator+(U64x8 a, U64x8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
inline U64x8 operator*(U64x8 a, U64x8 b) { return {_mm512_mullo_epi64(a.v, b.v)}; }
inline U64x8 operator^(U64x8 a, U64x8 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline U64x8 shift_right(U64x8 a, int bits) { return {_mm512_srli_epi64(a.v, static_cast<unsigned>(bits))}; }
inline uint32_t at_least(U64x8 a, U64x8 b) { return _mm512_cmpge_epu64_mask(a.v, b.v); }

}  // namespace hasten::HASTEN_ISA

#include "dot_vnni.h"
