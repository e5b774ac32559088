// RMS norm (Zhang & Sennrich, 2019) and layer norm (Ba et al., 2016) of rows, with float output, int8 output or both.
#pragma once

#include "quantize.h"

namespace hasten::HASTEN_ISA {

// Sum of term(i) over columns i, i + 16, ...: four accumulators, to overlap the additions.
template <class Term>
inline float sum_columns(int32_t width, const Term& term) {
    F32x16 a = zero(), b = zero(), c = zero(), d = zero();
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) {
        a = a + term(i);
        b = b + term(i + 16);
        c = c + term(i + 32);
        d = d + term(i + 48);
    }
    for (; i < width; i += 16) a = a + term(i);
    return reduce_add((a + b) + (c + d));
}

inline float inverse_rms(const float* x, int32_t width, float eps) {
    const float squares = sum_columns(width, [&](int64_t i) {
        const F32x16 v = mask_tail(load(x + i), i, width);
        return v * v;
    });
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
}

inline float row_mean(const float* x, int32_t width) {
    return sum_columns(width, [&](int64_t i) { return mask_tail(load(x + i), i, width); }) / static_cast<float>(width);
}

inline float inverse_std(const float* x, int32_t width, float mean, float eps) {
    const float squares = sum_columns(width, [&](int64_t i) {
        const F32x16 d = mask_tail(load(x + i) - broadcast(mean), i, width);
        return d * d;
    });
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
}

// Null weight or bias: ones or zeros.
inline F32x16 apply_affine(F32x16 normal, const float* weight, const float* bias, int64_t i) {
    const F32x16 y = weight != nullptr ? normal * load(weight + i) : normal;
    return bias != nullptr ? y + load(bias + i) : y;
}

inline void norm_row(const NormTask& task, int64_t t) {
    const float* x = task.x.data + t * task.x.stride;
    const int32_t width = task.width;
    if (task.kind == NormKind::none) {
        store_row([=](int64_t i) { return mask_tail(load(x + i), i, width); }, width, task.out, task.quantized, t, nullptr);
    } else if (task.kind == NormKind::rms) {
        const float* weight = task.weight;
        const F32x16 inverse = broadcast(inverse_rms(x, width, task.eps));
        const auto value = [=](int64_t i) { return mask_tail(apply_affine(load(x + i) * inverse, weight, nullptr, i), i, width); };
        store_row(value, width, task.out, task.quantized, t, nullptr);
    } else {
        const float *weight = task.weight, *bias = task.bias;
        const float mean = row_mean(x, width);
        const F32x16 inverse = broadcast(inverse_std(x, width, mean, task.eps)), center = broadcast(mean);
        const auto value = [=](int64_t i) {
            return mask_tail(apply_affine((load(x + i) - center) * inverse, weight, bias, i), i, width);
        };
        store_row(value, width, task.out, task.quantized, t, nullptr);
    }
}

inline void norm(const NormTask& task) {
    for (int64_t t = task.begin; t < task.end; ++t) norm_row(task, t);
}

}  // namespace hasten::HASTEN_ISA
