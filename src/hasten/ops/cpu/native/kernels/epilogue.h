// The epilogue of a matrix product: scales, bias, activation, gate and residual.
#pragma once

#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

// Prefetch what the epilogue reads and writes, while the sums are computed.
inline void prefetch_scales(const LinearTask& task, const PanelSet& set) {
    for (int i = 0; i < set.count && task.matrix->scales != nullptr; ++i) prefetch(task.matrix->scales + set.panels[i] * kLanes);
}
inline void prefetch_outputs(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows) {
    const int outputs = task.gated ? set.count / 2 : set.count;
    for (int32_t r = row; r < row + rows; ++r) {
        for (int i = 0; i < outputs; ++i) prefetch_to_write(task.out.data + r * task.out.stride + set.panels[i] * kLanes);
    }
}

// Sums of 16 outputs, float or integer.
inline F32x16 load_sums(const float* sums) { return load(sums); }
inline F32x16 load_sums(const int32_t* sums) { return to_float(load_i32(sums)); }

// Scales and bias of the 16 outputs of a panel.
struct ScaleBias {
    F32x16 scale, bias;

    ScaleBias(const LinearTask& task, int32_t panel)
        : scale(task.matrix->scales != nullptr ? load(task.matrix->scales + panel * kLanes) : broadcast(1.0f)),
          bias(task.bias != nullptr ? load(task.bias + panel * kLanes) : zero()) {}

    // Adding a zero bias would turn -0 into 0, so there is a variant without bias.
    template <bool HasBias>
    F32x16 apply(F32x16 sums, F32x16 row_scale) const {
        const F32x16 value = sums * (row_scale * scale);
        return HasBias ? value + bias : value;
    }
};

// Writes 16 outputs of `rows` rows from their sums. All fields of the task are read before the first store, which may alias them
// for all the compiler knows.
template <bool Gated, bool HasBias, bool HasActivation, class Sum>
inline void apply_panel_epilogue(const LinearTask& task, const PanelSet& set, int i, int32_t row, int32_t rows, const Sum* sums) {
    const int outputs = Gated ? set.count / 2 : set.count;
    const int64_t sums_stride = set.count * kLanes, up_offset = outputs * kLanes, stride = task.out.stride;
    const int32_t column = set.panels[i] * kLanes;
    const int32_t remaining = (Gated ? task.matrix->out_features / 2 : task.matrix->out_features) - column;
    const ScaleBias scale_bias(task, set.panels[i]), up_scale_bias(task, set.panels[Gated ? i + outputs : i]);
    const float* scales = task.quantized.data != nullptr ? task.quantized.scales + row : nullptr;
    const Activation kind = task.activation;
    const bool add = task.add;
    float* out = task.out.data + row * stride + column;
    sums += i * kLanes;
    for (int32_t r = 0; r < rows; ++r, sums += sums_stride, out += stride) {
        const F32x16 scale = broadcast(scales != nullptr ? scales[r] : 1.0f);
        F32x16 value = scale_bias.template apply<HasBias>(load_sums(sums), scale);
        if constexpr (HasActivation) value = activation(kind, value);
        if constexpr (Gated) value = value * up_scale_bias.template apply<HasBias>(load_sums(sums + up_offset), scale);
        if (add) value = load(out) + value;
        store(out, remaining < kLanes ? blend_first(remaining, value, zero()) : value);
    }
}

template <bool Gated, bool HasBias, class Sum>
inline void apply_epilogue(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const Sum* sums) {
    for (int i = 0; i < (Gated ? set.count / 2 : set.count); ++i) {
        if (task.activation != Activation::none)
            apply_panel_epilogue<Gated, HasBias, true>(task, set, i, row, rows, sums);
        else
            apply_panel_epilogue<Gated, HasBias, false>(task, set, i, row, rows, sums);
    }
}

// Writes rows [row, row + rows) of the set's outputs from sums [rows][set.count][16].
template <class Sum>
inline void apply_epilogue(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const Sum* sums) {
    if (task.gated) {
        if (task.bias != nullptr) return apply_epilogue<true, true>(task, set, row, rows, sums);
        return apply_epilogue<true, false>(task, set, row, rows, sums);
    }
    if (task.bias != nullptr) return apply_epilogue<false, true>(task, set, row, rows, sums);
    return apply_epilogue<false, false>(task, set, row, rows, sums);
}

}  // namespace hasten::HASTEN_ISA
