// Tables of the rotary position embedding (Su et al., 2021).
#pragma once

#include "../simd/math.h"

namespace hasten::HASTEN_ISA {

// Above this sine_cosine loses digits; libm takes over.
constexpr float kLargestAngle = 131072.0f;

inline void rotary_row(const RotaryTask& task, int64_t t) {
    float* cosines = task.table + t * 2 * task.half;
    float* sines = cosines + task.half;
    const float position = static_cast<float>(task.positions[t]);
    for (int32_t i = 0; i < task.half; i += 16) {
        const int n = task.half - i < 16 ? task.half - i : 16;
        const F16 angle = broadcast(position) * load_first(task.inverse_frequencies + i, n);
        if (largest(abs(angle)) < kLargestAngle) {
            F16 sine, cosine;
            sine_cosine(angle, sine, cosine);
            store_first(cosines + i, n, cosine * broadcast(task.factor));
            store_first(sines + i, n, sine * broadcast(task.factor));
            continue;
        }
        for (int j = i; j < i + n; ++j) {
            const float far = position * task.inverse_frequencies[j];
            cosines[j] = __builtin_cosf(far) * task.factor;
            sines[j] = __builtin_sinf(far) * task.factor;
        }
    }
}

inline void rotary(const RotaryTask& task) {
    for (int64_t t = task.begin; t < task.end; ++t) rotary_row(task, t);
}

}  // namespace hasten::HASTEN_ISA
