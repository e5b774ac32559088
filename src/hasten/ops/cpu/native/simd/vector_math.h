// exp, tanh, erf, sine, cosine and the activations over 16 lanes, written once over the operations of avx512.h or avx2.h.
//
// NaN propagates: max and min return their second operand if either is NaN, so x is the second operand.
#pragma once

#include "../kernels.h"

namespace hasten::HASTEN_ISA {

// Unpacks a vector of bf16 pairs into the first and the second of each lane.
inline void unpack_bf16_pairs(I32x16 pairs, F32x16& first, F32x16& second) {
    first = as_float(shift_left(pairs, 16));
    second = as_float(pairs & broadcast_i32(static_cast<int32_t>(0xffff0000u)));
}

// exp(x) to about 2 ulp; 0 below -87.3, finite (3.4e38) above 88.7; exp(0) is exactly 1.
inline F32x16 exp(F32x16 x) {
    const F32x16 low = broadcast(-87.33654f);
    const F32x16 clamped = min(broadcast(88.722839f), max(low, x));
    const F32x16 n = round(clamped * broadcast(1.44269504088896341f));
    F32x16 r = fma(n, broadcast(-0.693359375f), clamped);  // ln 2 in two parts, so that r is exact
    r = fma(n, broadcast(2.12194440e-4f), r);
    F32x16 p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r) + broadcast(1.0f);
    return select(greater(low, x), zero(), scale_by_pow2(p, n));
}

inline float exp(float x) {
    alignas(64) float lanes[16];
    store(lanes, exp(broadcast(x)));
    return lanes[0];
}

// The magnitude with the sign of x.
inline F32x16 copy_sign(F32x16 magnitude, F32x16 x) { return select(greater(zero(), x), zero() - magnitude, magnitude); }

// tanh(x) to 2e-7 relative: x + x^3 P(x^2) near zero, elsewhere 1 - 2 / (exp(2|x|) + 1).
inline F32x16 tanh(F32x16 x) {
    const F32x16 magnitude = abs(x);
    const F32x16 x2 = x * x;
    F32x16 p = broadcast(-5.7170370e-3f);
    p = fma(p, x2, broadcast(2.06505787e-2f));
    p = fma(p, x2, broadcast(-5.37434965e-2f));
    p = fma(p, x2, broadcast(1.33314908e-1f));
    p = fma(p, x2, broadcast(-3.33332837e-1f));
    const F32x16 near = fma(p * x2, x, x);
    const F32x16 one = broadcast(1.0f);
    const F32x16 far = one - broadcast(2.0f) / (exp(magnitude + magnitude) + one);
    return select(greater(broadcast(0.625f), magnitude), near, copy_sign(far, x));
}

// erf(x) to 2e-7: x P(x^2) below 1, elsewhere 1 - exp(Q(|x|)) with a polynomial Q fitted to log erfc.
inline F32x16 erf(F32x16 x) {
    const F32x16 magnitude = abs(x);
    const F32x16 x2 = x * x;
    F32x16 p = broadcast(7.85385782e-5f);
    p = fma(p, x2, broadcast(-8.01019254e-4f));
    p = fma(p, x2, broadcast(5.18832775e-3f));
    p = fma(p, x2, broadcast(-2.68538110e-2f));
    p = fma(p, x2, broadcast(1.12835854e-1f));
    p = fma(p, x2, broadcast(-3.76126260e-1f));
    p = fma(p, x2, broadcast(1.12837911f));
    const F32x16 clamped = min(broadcast(4.0f), magnitude);
    F32x16 q = broadcast(1.8557490e-4f);
    q = fma(q, clamped, broadcast(-2.93961563e-3f));
    q = fma(q, clamped, broadcast(2.18053516e-2f));
    q = fma(q, clamped, broadcast(-1.03037432e-1f));
    q = fma(q, clamped, broadcast(-6.38225615e-1f));
    q = fma(q, clamped, broadcast(-1.12704003f));
    q = fma(q, clamped, broadcast(-3.53708921e-4f));
    const F32x16 far = broadcast(1.0f) - exp(q);
    return select(greater(broadcast(1.0f), magnitude), p * x, copy_sign(far, x));
}

// Sine and cosine of angles up to 2^17 in magnitude, to 1e-7: reduction by quarter turns, then two polynomials.
inline void sine_cosine(F32x16 angle, F32x16& sine, F32x16& cosine) {
    const F32x16 n = round(angle * broadcast(0.636619772f));
    F32x16 r = fma(n, broadcast(-1.57079637f), angle);  // pi / 2 in three floats
    r = fma(n, broadcast(4.37113883e-8f), r);
    r = fma(n, broadcast(1.71512489e-15f), r);
    const F32x16 r2 = r * r;
    F32x16 s = broadcast(2.71793989e-6f);
    s = fma(s, r2, broadcast(-1.98392954e-4f));
    s = fma(s, r2, broadcast(8.33332911e-3f));
    s = fma(s, r2, broadcast(-1.66666672e-1f));
    s = fma(s * r2, r, r);
    F32x16 c = broadcast(-2.72067865e-7f);
    c = fma(c, r2, broadcast(2.47994794e-5f));
    c = fma(c, r2, broadcast(-1.38888834e-3f));
    c = fma(c, r2, broadcast(4.16666679e-2f));
    c = fma(c * r2, r2, fma(r2, broadcast(-0.5f), broadcast(1.0f)));
    const F32x16 quarter = n - broadcast(4.0f) * round(fma(n, broadcast(0.25f), broadcast(-0.375f)));  // 0, 1, 2 or 3
    const uint32_t one = equal(quarter, broadcast(1.0f)), two = equal(quarter, broadcast(2.0f));
    const uint32_t three = equal(quarter, broadcast(3.0f));
    const F32x16 straight_sine = select(one | three, c, s), straight_cosine = select(one | three, s, c);
    sine = select(two | three, zero() - straight_sine, straight_sine);
    cosine = select(one | two, zero() - straight_cosine, straight_cosine);
}

inline F32x16 silu(F32x16 x) { return x / (broadcast(1.0f) + exp(zero() - x)); }

inline F32x16 gelu(F32x16 x) {
    const F32x16 half = broadcast(0.5f) * x;
    return fma(half, erf(x * broadcast(0.707106781f)), half);
}

inline F32x16 gelu_tanh(F32x16 x) {
    const F32x16 half = broadcast(0.5f) * x;
    const F32x16 inner = broadcast(0.797884561f) * fma(broadcast(0.044715f) * (x * x), x, x);
    return fma(half, tanh(inner), half);
}

inline F32x16 activation(Activation kind, F32x16 x) {
    switch (kind) {
        case Activation::silu:
            return silu(x);
        case Activation::gelu:
            return gelu(x);
        case Activation::gelu_tanh:
            return gelu_tanh(x);
        case Activation::none:
            break;
    }
    return x;
}

}  // namespace hasten::HASTEN_ISA
