// RMS norm (Zhang & Sennrich, 2019) and layer norm (Ba et al., 2016) of rows, written as floats, as int8, or as both.
#pragma once

#include "quantize.h"

namespace hasten::HASTEN_ISA {

// Sum of term(i) over columns i, i + 16, ...: four running sums, so that additions overlap.
template <class Term>
inline float sum_columns(int32_t width, const Term& term) {
    F16 a = zero(), b = zero(), c = zero(), d = zero();
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) {
        a = a + term(i);
        b = b + term(i + 16);
        c = c + term(i + 32);
        d = d + term(i + 48);
    }
    for (; i < width; i += 16) a = a + term(i);
    return sum((a + b) + (c + d));
}

inline float inverse_rms(const float* x, int32_t width, float eps) {
    const float squares = sum_columns(width, [&](int64_t i) {
        const F16 v = inside(load(x + i), i, width);
        return v * v;
    });
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
}

inline float mean_of(const float* x, int32_t width) {
    return sum_columns(width, [&](int64_t i) { return inside(load(x + i), i, width); }) / static_cast<float>(width);
}

inline float inverse_deviation(const float* x, int32_t width, float mean, float eps) {
    const float squares = sum_columns(width, [&](int64_t i) {
        const F16 d = inside(load(x + i) - broadcast(mean), i, width);
        return d * d;
    });
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + eps);
}

// weight and bias may be null: ones and zeros.
inline F16 scaled(F16 normal, const float* weight, const float* bias, int64_t i) {
    const F16 y = weight != nullptr ? normal * load(weight + i) : normal;
    return bias != nullptr ? y + load(bias + i) : y;
}

inline void norm_row(const NormTask& task, int64_t t) {
    const float* x = task.x.data + t * task.x.stride;
    const int32_t width = task.width;
    if (task.kind == NormKind::none) {
        write_row([=](int64_t i) { return inside(load(x + i), i, width); }, width, task.out, task.quantized, t, nullptr);
    } else if (task.kind == NormKind::rms) {
        const float* weight = task.weight;
        const F16 inverse = broadcast(inverse_rms(x, width, task.eps));
        const auto value = [=](int64_t i) { return inside(scaled(load(x + i) * inverse, weight, nullptr, i), i, width); };
        write_row(value, width, task.out, task.quantized, t, nullptr);
    } else {
        const float *weight = task.weight, *bias = task.bias;
        const float mean = mean_of(x, width);
        const F16 inverse = broadcast(inverse_deviation(x, width, mean, task.eps)), center = broadcast(mean);
        const auto value = [=](int64_t i) { return inside(scaled((load(x + i) - center) * inverse, weight, bias, i), i, width); };
        write_row(value, width, task.out, task.quantized, t, nullptr);
    }
}

inline void norm(const NormTask& task) {
    for (int64_t t = task.begin; t < task.end; ++t) norm_row(task, t);
}

}  // namespace hasten::HASTEN_ISA
