// cos/sin table of the rotary position embedding (RoPE: Su et al., 2021).
#pragma once

#include "../simd/vector_math.h"

namespace hasten::HASTEN_ISA {

// Above this angle sine_cosine loses precision, and libm replaces it.
constexpr float kMaxVectorAngle = 131072.0f;

inline void rotary_table_row(const RotaryTableTask& task, int64_t t) {
    float* cosines = task.cos_sin + t * 2 * task.half;
    float* sines = cosines + task.half;
    const float position = static_cast<float>(task.positions[t]);
    for (int32_t i = 0; i < task.half; i += 16) {
        const int n = task.half - i < 16 ? task.half - i : 16;
        const F32x16 angles = broadcast(position) * load_partial(task.inverse_frequencies + i, n);
        if (reduce_max(abs(angles)) < kMaxVectorAngle) {
            F32x16 sine, cosine;
            sine_cosine(angles, sine, cosine);
            store_partial(cosines + i, n, cosine * broadcast(task.factor));
            store_partial(sines + i, n, sine * broadcast(task.factor));
            continue;
        }
        for (int j = i; j < i + n; ++j) {
            const float angle = position * task.inverse_frequencies[j];
            cosines[j] = __builtin_cosf(angle) * task.factor;
            sines[j] = __builtin_sinf(angle) * task.factor;
        }
    }
}

inline void rotary_table(const RotaryTableTask& task) {
    for (int64_t t = task.begin; t < task.end; ++t) rotary_table_row(task, t);
}

}  // namespace hasten::HASTEN_ISA
