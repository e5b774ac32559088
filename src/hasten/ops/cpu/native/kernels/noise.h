// Gumbel noise of (seed, sequence, position, token), with the bits of hasten.sampling.noise, and the race that it decides.
#pragma once

#include "../simd/math.h"

namespace hasten::HASTEN_ISA {

constexpr uint64_t kNoiseA = 0x9e3779b97f4a7c15u, kNoiseB = 0xc13fa9a902a6328fu, kNoiseC = 0xd1b54a32d192ed03u;
constexpr uint64_t kMix1 = 0xbf58476d1ce4e5b9u, kMix2 = 0x94d049bb133111ebu;
constexpr double kMostNoise = 37.0;  // it lies in (-3.7, 36.8)

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

// The largest sums so far of a value and the noise of its token.
struct Race {
    uint64_t stream;
    double best = -__builtin_inf(), second = -__builtin_inf();
    int32_t winner = 0;

    bool enter(int64_t token, float value) {
        const double sum = noise(stream, token) + static_cast<double>(value);
        if (sum <= best) {
            if (sum > second) second = sum;
            return false;
        }
        second = best;
        best = sum;
        winner = static_cast<int32_t>(token);
        return true;
    }
    // Other logarithms and another order of rounding move two sums by less than this against each other.
    double doubt() const { return 1e-10 + 0x1p-50 * __builtin_fabs(best); }
    bool decided() const { return best - second > doubt(); }

    // What the mixed bits, before the last step, must reach for a token of this value to come near the best: that step leaves the
    // upper 31 bits alone. The margin is far above the rounding of the exponentials.
    uint64_t least_bits(float value) const {
        const double missing = best - doubt() - static_cast<double>(value);
        const double uniform = missing < -6.0 ? 0.0 : __builtin_exp(-__builtin_exp(-missing)) - 1e-9;
        const double bits = uniform * 0x1p31 - 1.0;
        return bits > 0.0 ? static_cast<uint64_t>(bits) << 33 : 0;
    }
    bool out_of_reach(float value) const { return best - doubt() - static_cast<double>(value) > kMostNoise; }
};

// Mixed bits of the tokens of eight lanes, but for the last step.
inline U8 mixed_bits(U8 key) {
    const U8 once = (key ^ shift_right(key, 30)) * ubroadcast(kMix1);
    return (once ^ shift_right(once, 27)) * ubroadcast(kMix2);
}

}  // namespace hasten::HASTEN_ISA
