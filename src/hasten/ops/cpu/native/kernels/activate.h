// Activation of the feed-forward layers, gated or not, with float output, int8 output or both.
#pragma once

#include "quantize.h"

namespace hasten::HASTEN_ISA {

template <class Function>
inline void activate_rows(const ActivateTask& task, const Function& function) {
    const int32_t width = task.width;
    for (int64_t t = task.begin; t < task.end; ++t) {
        const float* x = task.x.data + t * task.x.stride;
        const float* up = x + width;
        if (task.gated) {
            const auto value = [=](int64_t i) {
                const int n = width - i < 16 ? static_cast<int>(width - i) : 16;
                return function(load_partial(x + i, n)) * load_partial(up + i, n);
            };
            store_row(value, width, task.out, task.quantized, t, task.scratch);
        } else {
            const auto value = [=](int64_t i) { return mask_tail(function(load(x + i)), i, width); };
            store_row(value, width, task.out, task.quantized, t, task.scratch);
        }
    }
}

inline void activate(const ActivateTask& task) {
    switch (task.activation) {
        case Activation::none:
            return activate_rows(task, [](F32x16 x) { return x; });
        case Activation::silu:
            return activate_rows(task, [](F32x16 x) { return silu(x); });
        case Activation::gelu:
            return activate_rows(task, [](F32x16 x) { return gelu(x); });
        case Activation::gelu_tanh:
            return activate_rows(task, [](F32x16 x) { return gelu_tanh(x); });
    }
}

}  // namespace hasten::HASTEN_ISA
