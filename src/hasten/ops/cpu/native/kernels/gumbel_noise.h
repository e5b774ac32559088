// Gumbel noise of (seed, sequence, position, token), bit for bit that of hasten.sampling.noise, and the argmax that it decides.
#pragma once

#include "../simd/vector_math.h"

namespace hasten::HASTEN_ISA {

constexpr uint64_t kNoiseA = 0x9e3779b97f4a7c15u, kNoiseB = 0xc13fa9a902a6328fu, kNoiseC = 0xd1b54a32d192ed03u;
constexpr uint64_t kMix1 = 0xbf58476d1ce4e5b9u, kMix2 = 0x94d049bb133111ebu;
constexpr double kMaxNoise = 37.0;  // above all noise, which lies in (-3.7, 36.8)

// The finaliser of SplitMix64.
inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * kMix1;
    z = (z ^ (z >> 27)) * kMix2;
    return z ^ (z >> 31);
}

inline uint64_t noise_stream(uint64_t seed, uint64_t sequence, uint64_t position) {
    const uint64_t of_sequence = mix(mix(seed + kNoiseA) + (sequence + 1) * kNoiseB);
    return mix(of_sequence + (position + 1) * kNoiseC);
}

inline double noise(uint64_t stream, int64_t token) {
    const uint64_t bits = mix(stream + (static_cast<uint64_t>(token) + 1) * kNoiseA) >> 12;
    return -__builtin_log(-__builtin_log((static_cast<double>(bits) + 0.5) * 0x1p-52));
}

// Running argmax and runner-up of value + noise.
struct GumbelArgmax {
    uint64_t stream;
    double best = -__builtin_inf(), second = -__builtin_inf();
    int32_t token = 0;

    bool add(int64_t candidate, float value) {
        const double sum = noise(stream, candidate) + static_cast<double>(value);
        if (sum <= best) {
            if (sum > second) second = sum;
            return false;
        }
        second = best;
        best = sum;
        token = static_cast<int32_t>(candidate);
        return true;
    }
    // Bounds the difference between two sums that another libm or another order of rounding can cause.
    double tolerance() const { return 1e-10 + 0x1p-50 * __builtin_fabs(best); }
    bool decided() const { return best - second > tolerance(); }

    // Lower bound of the partly mixed bits with which a token of this value comes near the best sum. The missing last step of the
    // mixing leaves the upper 31 bits unchanged. The margin is far above the rounding errors of the exponentials.
    uint64_t min_bits(float value) const {
        const double deficit = best - tolerance() - static_cast<double>(value);
        const double uniform = deficit < -6.0 ? 0.0 : __builtin_exp(-__builtin_exp(-deficit)) - 1e-9;
        const double bits = uniform * 0x1p31 - 1.0;
        return bits > 0.0 ? static_cast<uint64_t>(bits) << 33 : 0;
    }
    bool cannot_win(float value) const { return best - tolerance() - static_cast<double>(value) > kMaxNoise; }
};

// Mixed bits of eight tokens, without the last step of the finaliser.
inline U64x8 partly_mixed_bits(U64x8 key) {
    const U64x8 once = (key ^ shift_right(key, 30)) * broadcast_u64(kMix1);
    return (once ^ shift_right(once, 27)) * broadcast_u64(kMix2);
}

}  // namespace hasten::HASTEN_ISA
