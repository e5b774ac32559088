// Sixteen lanes in one 512-bit register. The same names over two 256-bit registers are in avx2.h: kernels are written once.
// Needs AVX-512 F, BW, DQ, VL and VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace hasten::HASTEN_ISA {

constexpr int kVectorRegisters = 32;  // how many F16 or I16 the register file holds

// 16 floats. Operators are lane by lane.
struct F16 {
    __m512 v;
};

inline F16 zero() { return {_mm512_setzero_ps()}; }
inline F16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c, rounded once
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
inline F16 round(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }  // ties to even
inline F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }

// x * 2^n for whole n.
inline F16 scale_by_power_of_two(F16 x, F16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }

// Lanes below n (0 to 16) of a, the others of b.
inline F16 first(int n, F16 a, F16 b) { return {_mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), b.v, a.v)}; }
// The lanes whose bit is set, of a; the others of b.
inline F16 select(uint32_t bits, F16 a, F16 b) { return {_mm512_mask_blend_ps(static_cast<__mmask16>(bits), b.v, a.v)}; }
inline uint32_t greater(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint32_t equal(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }

inline F16 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)}; }
inline void store_first(float* p, int n, F16 a) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v); }

// One fixed tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1.
inline float sum(F16 a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float largest(F16 a) { return _mm512_reduce_max_ps(a.v); }

// 16 consecutive values of another type, widened exactly.
inline F16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline F16 load_s8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// Rounded to nearest, ties to even. NaN stays NaN.
inline void store_bf16(uint16_t* p, F16 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(kept));
}
inline void store_f16(uint16_t* p, F16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Rounded to nearest, ties to even; the caller keeps |a| <= 127.
inline void store_s8(int8_t* p, F16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

// 16 int32.
struct I16 {
    __m512i v;
};

inline I16 izero() { return {_mm512_setzero_si512()}; }
inline I16 ibroadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16 iload(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void istore(void* p, I16 a) { _mm512_storeu_si512(p, a.v); }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I16 operator*(I16 a, I16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I16 shift_right(I16 a, int bits) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I16 shift_left(I16 a, int bits) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I16 shift_right_signed(I16 a, int bits) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(bits))}; }
inline I16 operator^(I16 a, I16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
// The low four bits of each lane, less 8.
inline F16 nibble_to_float(I16 a) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(a.v, values)};
}
inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline int32_t sum(I16 a) { return _mm512_reduce_add_epi32(a.v); }

// acc + the four products of each lane: unsigned bytes of u times signed bytes of s. Exact.
inline I16 dot4(I16 acc, I16 u, I16 s) { return {_mm512_dpbusd_epi32(acc.v, u.v, s.v)}; }

// 16 signed bytes, each as both 16-bit halves of a lane. Sums and products of such halves, modulo 65,536.
inline I16 load_s8_twice(const int8_t* p) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm512_mask_blend_epi16(0xaaaaaaaa, wide, _mm512_slli_epi32(wide, 16))};
}
inline I16 wbroadcast(int x) { return {_mm512_set1_epi16(static_cast<int16_t>(x))}; }
inline I16 add_words(I16 a, I16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline I16 multiply_words(I16 a, I16 b) { return {_mm512_mullo_epi16(a.v, b.v)}; }

// Scales of sums of bytes.h, and what to add up with them.
inline I16 load_nibble_scales(const int8_t* p) {  // in the low half of each lane, beside zeros
    return ibroadcast(0xffff) & I16{_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I16 add_scaled(I16 acc, I16 sums, I16 scales) { return {_mm512_dpwssd_epi32(acc.v, sums.v, scales.v)}; }

// Rounded to nearest, ties to even.
inline I16 to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
// The same bits.
inline I16 as_int(F16 a) { return {_mm512_castps_si512(a.v)}; }
inline F16 as_float(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
// Of lanes that are not negative the greater one, and a NaN where there is one.
inline F16 max_or_nan(F16 a, F16 b) {
    return {_mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
inline float largest_or_nan(F16 a) {
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_castps_si512(a.v));
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Four rows of 64 bytes, `stride` apart, in quads: the four bytes of a column side by side. Lane 4 q + i of quads[c] is column
// 16 q + 4 c + i.
inline void load_quads(const void* rows, int64_t stride, I16* quads) {
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
// Four rows of 16 bytes in quads, in the order of the columns.
inline I16 load_quad_row(const void* rows, int64_t stride) {
    const char* p = static_cast<const char*>(rows);
    __m128i in[4];
    for (int i = 0; i < 4; ++i) in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride));
    const __m128i low[] = {_mm_unpacklo_epi8(in[0], in[1]), _mm_unpacklo_epi8(in[2], in[3])};
    const __m128i high[] = {_mm_unpackhi_epi8(in[0], in[1]), _mm_unpackhi_epi8(in[2], in[3])};
    const __m256i first_half = _mm256_set_m128i(_mm_unpackhi_epi16(low[0], low[1]), _mm_unpacklo_epi16(low[0], low[1]));
    const __m256i last_half = _mm256_set_m128i(_mm_unpackhi_epi16(high[0], high[1]), _mm_unpacklo_epi16(high[0], high[1]));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(first_half), last_half, 1)};
}
// Quarter q of a[c] and quarter c of a[q] change places.
inline void transpose_quarters(I16* a) {
    const __m512i even[] = {_mm512_shuffle_i32x4(a[0].v, a[1].v, 0x88), _mm512_shuffle_i32x4(a[2].v, a[3].v, 0x88)};
    const __m512i odd[] = {_mm512_shuffle_i32x4(a[0].v, a[1].v, 0xdd), _mm512_shuffle_i32x4(a[2].v, a[3].v, 0xdd)};
    a[0].v = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
    a[1].v = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
    a[2].v = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
    a[3].v = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
}
// 64 weights of bytes.h.
inline void store_weights(uint8_t* out, const I16* n) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_packus_epi32(n[0].v, n[1].v), b = _mm512_packus_epi32(n[2].v, n[3].v);
    const __m512i low_byte = _mm512_set1_epi16(0xff);
    const __m512i upper = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
    const __m512i lower = _mm512_packus_epi16(_mm512_and_si512(a, low_byte), _mm512_and_si512(b, low_byte));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, upper));
    _mm512_storeu_si512(out + 64, _mm512_permutexvar_epi32(order, lower));
}

// 128 weights of 16 lanes, coded as kernels/coded.h says, as four lines of bf16 pairs. base: of the codes' outputs.
inline void decode_bf16(const uint8_t* unit, I16 base, I16* lines) {
    const __m512i signs_and_codes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121));
    const __m512i nibble = _mm512_set1_epi8(0x0f), code = _mm512_set1_epi8(0x07);
    const __m512i both = _mm512_loadu_si512(unit + 128);
    const __m512i fours[] = {_mm512_and_si512(both, nibble), _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble)};
    for (int i = 0; i < 2; ++i) {
        const __m512i lower = _mm512_loadu_si512(unit + 64 * i);
        const __m512i sign_and_code = _mm512_shuffle_epi8(signs_and_codes, fours[i]);
        const __m512i upper = _mm512_mask_add_epi8(sign_and_code, _mm512_test_epi8_mask(fours[i], code), sign_and_code, base.v);
        lines[2 * i].v = _mm512_unpacklo_epi8(lower, upper);
        lines[2 * i + 1].v = _mm512_unpackhi_epi8(lower, upper);
    }
}

// 8 uint64; sums and products modulo 2^64.
struct U8 {
    __m512i v;
};

inline U8 ubroadcast(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
inline U8 uload(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
inline U8 operator+(U8 a, U8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
inline U8 operator*(U8 a, U8 b) { return {_mm512_mullo_epi64(a.v, b.v)}; }
inline U8 operator^(U8 a, U8 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline U8 shift_right(U8 a, int bits) { return {_mm512_srli_epi64(a.v, static_cast<unsigned>(bits))}; }
inline uint32_t at_least(U8 a, U8 b) { return _mm512_cmpge_epu64_mask(a.v, b.v); }

}  // namespace hasten::HASTEN_ISA

#include "bytes.h"
