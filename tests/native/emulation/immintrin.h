// AVX-512 and AVX-VNNI in software, to test kernels on processors without them: the intrinsics of SIMDe and those that SIMDe 0.7
// lacks. The include path has this file before the compiler's header of the same name.
#pragma once

// The compiler's types and intrinsics up to AVX2. Those of SIMDe would collide with the later ones.
#define _IMMINTRIN_H_INCLUDED
// clang-format off: each header needs the ones before it
#include <x86gprintrin.h>
#include <mmintrin.h>
#include <xmmintrin.h>
#include <emmintrin.h>
#include <pmmintrin.h>
#include <tmmintrin.h>
#include <smmintrin.h>
#include <wmmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#include <f16cintrin.h>
// clang-format on

#define SIMDE_X86_AVX512F_ENABLE_NATIVE_ALIASES
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

using __mmask16 = uint16_t;
using __mmask32 = uint32_t;
using __mmask64 = uint64_t;

namespace emulation {

// A vector's lanes as an array.
template <class T, class Vector>
struct Lanes {
    T lane[sizeof(Vector) / sizeof(T)];

    Lanes() = default;
    Lanes(const Vector& v) { std::memcpy(lane, &v, sizeof v); }
    operator Vector() const {
        Vector v;
        std::memcpy(&v, lane, sizeof v);
        return v;
    }
};
using Floats = Lanes<float, __m512>;
using Ints = Lanes<int32_t, __m512i>;
using Unsigned = Lanes<uint32_t, __m512i>;

// to[i] = f(from[i]) for 16 lanes.
template <class To, class From, class F>
inline To each(const From& from, F f) {
    To to;
    for (int i = 0; i < 16; ++i) to.lane[i] = f(from.lane[i]);
    return to;
}

}  // namespace emulation

inline __m512i _mm512_cvtepi8_epi32(__m128i x) {
    return emulation::each<emulation::Ints>(emulation::Lanes<int8_t, __m128i>(x), [](int8_t v) { return v; });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
    return emulation::each<emulation::Ints>(emulation::Lanes<uint16_t, __m256i>(x), [](uint16_t v) { return v; });
}
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
    return emulation::each<emulation::Lanes<int16_t, __m256i>>(emulation::Ints(x),
                                                               [](int32_t v) { return static_cast<int16_t>(v); });
}
inline __m512i _mm512_cvtps_epi32(__m512 x) {
    return emulation::each<emulation::Ints>(emulation::Floats(x), [](float v) { return _mm_cvtss_si32(_mm_set_ss(v)); });
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) {
    return emulation::each<emulation::Floats>(emulation::Ints(x), [](int32_t v) { return static_cast<float>(v); });
}
inline __m512i _mm512_srai_epi32(__m512i x, unsigned bits) {
    return emulation::each<emulation::Ints>(emulation::Ints(x), [bits](int32_t v) { return v >> bits; });
}
inline float _mm512_reduce_max_ps(__m512 x) {
    const emulation::Floats v(x);
    float most = v.lane[0];
    for (const float lane : v.lane) most = lane > most ? lane : most;
    return most;
}
inline uint32_t _mm512_reduce_max_epu32(__m512i x) {
    uint32_t most = 0;
    for (const uint32_t lane : emulation::Unsigned(x).lane) most = lane > most ? lane : most;
    return most;
}
inline int32_t _mm512_reduce_add_epi32(__m512i x) {
    uint32_t total = 0;
    for (const uint32_t lane : emulation::Unsigned(x).lane) total += lane;
    return static_cast<int32_t>(total);
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float* p) {
    emulation::Floats v;
    for (int i = 0; i < 16; ++i) v.lane[i] = (mask >> i & 1) != 0 ? p[i] : 0.0f;
    return v;
}
inline void _mm512_mask_storeu_ps(float* p, __mmask16 mask, __m512 x) {
    const emulation::Floats v(x);
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i & 1) != 0) p[i] = v.lane[i];
    }
}
inline __m256 _mm512_extractf32x8_ps(__m512 x, int half) { return _mm256_loadu_ps(emulation::Floats(x).lane + 8 * half); }
inline __m256i _mm512_cvtps_ph(__m512 x, int) {  // rounded to nearest, ties to even
    const emulation::Floats v(x);
    return _mm256_set_m128i(_mm256_cvtps_ph(_mm256_loadu_ps(v.lane + 8), 0), _mm256_cvtps_ph(_mm256_loadu_ps(v.lane), 0));
}
inline __m512 _mm512_cvtph_ps(__m256i x) {
    emulation::Floats v;
    _mm256_storeu_ps(v.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(x)));
    _mm256_storeu_ps(v.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
    return v;
}

inline __m256i _mm256_dpbusd_avx_epi32(__m256i acc, __m256i u, __m256i s) {
    const emulation::Lanes<uint8_t, __m256i> a(u);
    const emulation::Lanes<int8_t, __m256i> b(s);
    emulation::Lanes<int32_t, __m256i> sums(acc);
    for (int i = 0; i < 32; ++i) sums.lane[i / 4] += a.lane[i] * b.lane[i];
    return sums;
}
inline __m256i _mm256_dpwssd_avx_epi32(__m256i acc, __m256i a, __m256i b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
