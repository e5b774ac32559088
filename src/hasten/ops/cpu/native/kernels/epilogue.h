// What becomes of the sums of a matrix product: scales, bias, activation, gate, residual.
#pragma once

#include "panels.h"

namespace hasten::HASTEN_ISA {

// Both bring what `finish` will read and write into the cache, while the sums are still being made.
inline void prefetch_scales(const LinearTask& task, const PanelSet& set) {
    for (int i = 0; i < set.count && task.matrix->scales != nullptr; ++i) prefetch(task.matrix->scales + set.panels[i] * kLanes);
}
inline void prefetch_outputs(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows) {
    const int outputs = task.gated ? set.count / 2 : set.count;
    for (int32_t r = row; r < row + rows; ++r) {
        for (int i = 0; i < outputs; ++i) prefetch_to_write(task.out.data + r * task.out.stride + set.panels[i] * kLanes);
    }
}

// Sums of 16 outputs, floats or integers.
inline F16 load_sums(const float* sums) { return load(sums); }
inline F16 load_sums(const int32_t* sums) { return to_float(iload(sums)); }

// The scales and the bias of a panel's 16 outputs.
struct Columns {
    F16 scale, bias;

    Columns(const LinearTask& task, int32_t panel)
        : scale(task.matrix->scales != nullptr ? load(task.matrix->scales + panel * kLanes) : broadcast(1.0f)),
          bias(task.bias != nullptr ? load(task.bias + panel * kLanes) : zero()) {}

    // -0 + 0 is 0: without a bias nothing is added.
    template <bool Biased>
    F16 apply(F16 sums, F16 row_scale) const {
        const F16 value = sums * (row_scale * scale);
        return Biased ? value + bias : value;
    }
};

// 16 outputs of `rows` rows from their sums, `stride` from one row to the next. What it reads of the task is read before the first
// store, which might change it for all that the compiler knows.
template <bool Gated, bool Biased, bool Active, class Sum>
inline void finish_panel(const LinearTask& task, const PanelSet& set, int i, int32_t row, int32_t rows, const Sum* sums) {
    const int outputs = Gated ? set.count / 2 : set.count;
    const int64_t sums_stride = set.count * kLanes, partner_at = outputs * kLanes, stride = task.out.stride;
    const int32_t column = set.panels[i] * kLanes;
    const int32_t left = (Gated ? task.matrix->out_features / 2 : task.matrix->out_features) - column;
    const Columns columns(task, set.panels[i]), partners(task, set.panels[Gated ? i + outputs : i]);
    const float* scales = task.quantized.data != nullptr ? task.quantized.scales + row : nullptr;
    const Activation kind = task.activation;
    const bool add = task.add;
    float* out = task.out.data + row * stride + column;
    sums += i * kLanes;
    for (int32_t r = 0; r < rows; ++r, sums += sums_stride, out += stride) {
        const F16 scale = broadcast(scales != nullptr ? scales[r] : 1.0f);
        F16 value = columns.template apply<Biased>(load_sums(sums), scale);
        if constexpr (Active) value = activation(kind, value);
        if constexpr (Gated) value = value * partners.template apply<Biased>(load_sums(sums + partner_at), scale);
        if (add) value = load(out) + value;
        store(out, left < kLanes ? first(left, value, zero()) : value);
    }
}

template <bool Gated, bool Biased, class Sum>
inline void finish(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const Sum* tile) {
    for (int i = 0; i < (Gated ? set.count / 2 : set.count); ++i) {
        if (task.activation != Activation::none)
            finish_panel<Gated, Biased, true>(task, set, i, row, rows, tile);
        else
            finish_panel<Gated, Biased, false>(task, set, i, row, rows, tile);
    }
}

// Rows [row, row + rows) of the set's outputs from their sums, tile [rows][set.count][16].
template <class Sum>
inline void finish(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const Sum* tile) {
    if (task.gated) {
        if (task.bias != nullptr) return finish<true, true>(task, set, row, rows, tile);
        return finish<true, false>(task, set, row, rows, tile);
    }
    if (task.bias != nullptr) return finish<false, true>(task, set, row, rows, tile);
    return finish<false, false>(task, set, row, rows, tile);
}

}  // namespace hasten::HASTEN_ISA
