// What becomes of the sums of a matrix product: scales, bias, activation, gate, residual.
#pragma once

#include "panels.h"

namespace hasten::HASTEN_ISA {

// Brings the lines that `finish` will write into the cache, while the sums are still being made.
inline void prefetch_outputs(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows) {
    const int outputs = task.gated ? set.count / 2 : set.count;
    for (int32_t r = row; r < row + rows; ++r) {
        for (int i = 0; i < outputs; ++i) prefetch(task.out.data + r * task.out.stride + set.panels[i] * kLanes);
    }
}

// The scales and the bias of a panel's 16 outputs.
struct Columns {
    F16 scale, bias;

    Columns() {}
    Columns(const LinearTask& task, int32_t panel)
        : scale(task.matrix->scales != nullptr ? load(task.matrix->scales + panel * kLanes) : broadcast(1.0f)),
          bias(task.bias != nullptr ? load(task.bias + panel * kLanes) : zero()) {}

    // -0 + 0 is 0: without a bias nothing is added.
    template <bool Biased>
    F16 apply(const float* sums, F16 row_scale) const {
        const F16 value = load(sums) * (row_scale * scale);
        return Biased ? value + bias : value;
    }
};

template <bool Gated, bool Biased>
inline void finish(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const float* tile) {
    const int outputs = Gated ? set.count / 2 : set.count;
    const int32_t width = Gated ? task.matrix->out_features / 2 : task.matrix->out_features;
    Columns columns[4];
    for (int i = 0; i < set.count; ++i) columns[i] = Columns(task, set.panels[i]);
    for (int32_t r = row; r < row + rows; ++r, tile += set.count * kLanes) {
        const F16 scale = broadcast(task.quantized.data != nullptr ? task.quantized.scales[r] : 1.0f);
        for (int i = 0; i < outputs; ++i) {
            const int32_t column = set.panels[i] * kLanes;
            F16 value = columns[i].template apply<Biased>(tile + i * kLanes, scale);
            if (task.activation != Activation::none) value = activation(task.activation, value);
            if constexpr (Gated) value = value * columns[i + outputs].template apply<Biased>(tile + (i + outputs) * kLanes, scale);
            float* out = task.out.data + r * task.out.stride + column;
            if (task.add) value = load(out) + value;
            store(out, width - column < kLanes ? first(width - column, value, zero()) : value);
        }
    }
}

// Rows [row, row + rows) of the set's outputs from their sums, tile [rows][set.count][16].
inline void finish(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const float* tile) {
    if (task.gated) {
        if (task.bias != nullptr) return finish<true, true>(task, set, row, rows, tile);
        return finish<true, false>(task, set, row, rows, tile);
    }
    if (task.bias != nullptr) return finish<false, true>(task, set, row, rows, tile);
    return finish<false, false>(task, set, row, rows, tile);
}

}  // namespace hasten::HASTEN_ISA
