// exp, tanh, erf, sine and cosine and the activations over 16 lanes, written once over the operations of avx512.h or avx2.h.
// A NaN comes out as a NaN: max and min return their second operand when one of the two is a NaN, so x stands second.
#pragma once

#include "../kernels.h"

namespace hasten::HASTEN_ISA {

// A line of bf16 pairs: the first and the second of each lane.
inline void widen_pairs(I16 line, F16& first_of, F16& second_of) {
    first_of = as_float(shift_left(line, 16));
    second_of = as_float(line & ibroadcast(static_cast<int32_t>(0xffff0000u)));
}

// exp(x) to about 2 units in the last place; 0 below -87.3, finite (3.4e38) above 88.7; exp(0) is 1 exactly.
inline F16 exp(F16 x) {
    const F16 low = broadcast(-87.33654f);
    const F16 clamped = min(broadcast(88.722839f), max(low, x));
    const F16 n = round(clamped * broadcast(1.44269504088896341f));
    F16 r = fma(n, broadcast(-0.693359375f), clamped);  // ln 2 in two parts, so that r is exact
    r = fma(n, broadcast(2.12194440e-4f), r);
    F16 p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r) + broadcast(1.0f);
    return select(greater(low, x), zero(), scale_by_power_of_two(p, n));
}

inline float exp(float x) {
    alignas(64) float lanes[16];
    store(lanes, exp(broadcast(x)));
    return lanes[0];
}

// The magnitude with the sign of x.
inline F16 with_sign(F16 magnitude, F16 x) { return select(greater(zero(), x), zero() - magnitude, magnitude); }

// tanh(x) to 2e-7 relative: x + x^3 P(x^2) near zero, elsewhere 1 - 2 / (exp(2|x|) + 1).
inline F16 tanh(F16 x) {
    const F16 size = abs(x);
    const F16 t = x * x;
    F16 p = broadcast(-5.7170370e-3f);
    p = fma(p, t, broadcast(2.06505787e-2f));
    p = fma(p, t, broadcast(-5.37434965e-2f));
    p = fma(p, t, broadcast(1.33314908e-1f));
    p = fma(p, t, broadcast(-3.33332837e-1f));
    const F16 near = fma(p * t, x, x);
    const F16 one = broadcast(1.0f);
    const F16 far = one - broadcast(2.0f) / (exp(size + size) + one);
    return select(greater(broadcast(0.625f), size), near, with_sign(far, x));
}

// erf(x) to 2e-7: x P(x^2) below 1, elsewhere 1 - exp(Q(|x|)) with a polynomial Q fitted to log erfc.
inline F16 erf(F16 x) {
    const F16 size = abs(x);
    const F16 t = x * x;
    F16 p = broadcast(7.85385782e-5f);
    p = fma(p, t, broadcast(-8.01019254e-4f));
    p = fma(p, t, broadcast(5.18832775e-3f));
    p = fma(p, t, broadcast(-2.68538110e-2f));
    p = fma(p, t, broadcast(1.12835854e-1f));
    p = fma(p, t, broadcast(-3.76126260e-1f));
    p = fma(p, t, broadcast(1.12837911f));
    const F16 bounded = min(broadcast(4.0f), size);
    F16 q = broadcast(1.8557490e-4f);
    q = fma(q, bounded, broadcast(-2.93961563e-3f));
    q = fma(q, bounded, broadcast(2.18053516e-2f));
    q = fma(q, bounded, broadcast(-1.03037432e-1f));
    q = fma(q, bounded, broadcast(-6.38225615e-1f));
    q = fma(q, bounded, broadcast(-1.12704003f));
    q = fma(q, bounded, broadcast(-3.53708921e-4f));
    const F16 far = broadcast(1.0f) - exp(q);
    return select(greater(broadcast(1.0f), size), p * x, with_sign(far, x));
}

// Sine and cosine of angles up to 2^17 in size, to 1e-7: the rest after whole quarter turns, then two polynomials.
inline void sine_cosine(F16 angle, F16& sine, F16& cosine) {
    const F16 n = round(angle * broadcast(0.636619772f));
    F16 r = fma(n, broadcast(-1.57079637f), angle);  // pi / 2 in three floats
    r = fma(n, broadcast(4.37113883e-8f), r);
    r = fma(n, broadcast(1.71512489e-15f), r);
    const F16 t = r * r;
    F16 s = broadcast(2.71793989e-6f);
    s = fma(s, t, broadcast(-1.98392954e-4f));
    s = fma(s, t, broadcast(8.33332911e-3f));
    s = fma(s, t, broadcast(-1.66666672e-1f));
    s = fma(s * t, r, r);
    F16 c = broadcast(-2.72067865e-7f);
    c = fma(c, t, broadcast(2.47994794e-5f));
    c = fma(c, t, broadcast(-1.38888834e-3f));
    c = fma(c, t, broadcast(4.16666679e-2f));
    c = fma(c * t, t, fma(t, broadcast(-0.5f), broadcast(1.0f)));
    const F16 quarter = n - broadcast(4.0f) * round(fma(n, broadcast(0.25f), broadcast(-0.375f)));  // 0, 1, 2 or 3
    const uint32_t one = equal(quarter, broadcast(1.0f)), two = equal(quarter, broadcast(2.0f));
    const uint32_t three = equal(quarter, broadcast(3.0f));
    const F16 straight_sine = select(one | three, c, s), straight_cosine = select(one | three, s, c);
    sine = select(two | three, zero() - straight_sine, straight_sine);
    cosine = select(one | two, zero() - straight_cosine, straight_cosine);
}

inline F16 silu(F16 x) { return x / (broadcast(1.0f) + exp(zero() - x)); }

inline F16 gelu(F16 x) {
    const F16 half = broadcast(0.5f) * x;
    return fma(half, erf(x * broadcast(0.707106781f)), half);
}

inline F16 gelu_tanh(F16 x) {
    const F16 half = broadcast(0.5f) * x;
    const F16 inner = broadcast(0.797884561f) * fma(broadcast(0.044715f) * (x * x), x, x);
    return fma(half, tanh(inner), half);
}

inline F16 activation(Activation kind, F16 x) {
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
