// What becomes of the sums of a matrix product: scales, bias, activation, gate, residual.
#pragma once

#include "panels.h"

namespace hasten::HASTEN_ISA {

// tile[r][i] for row `row + r` and panel i of a set, scaled, with the bias.
inline F16 scaled_sum(const LinearTask& task, int32_t row, int32_t panel, const float* sums) {
    F16 scale = broadcast(task.quantized.data != nullptr ? task.quantized.scales[row] : 1.0f);
    if (task.matrix->scales != nullptr) scale = scale * load(task.matrix->scales + panel * kLanes);
    const F16 value = load(sums) * scale;
    return task.bias != nullptr ? value + load(task.bias + panel * kLanes) : value;
}

// Rows [row, row + rows) of the set's outputs from their sums, tile [rows][set.count][16].
inline void finish(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, const float* tile) {
    const int outputs = task.gated ? set.count / 2 : set.count;
    const int32_t width = task.gated ? task.matrix->out_features / 2 : task.matrix->out_features;
    for (int32_t r = row; r < row + rows; ++r, tile += set.count * kLanes) {
        for (int i = 0; i < outputs; ++i) {
            const int32_t panel = set.panels[i];
            F16 value = activation(task.activation, scaled_sum(task, r, panel, tile + i * kLanes));
            if (task.gated) value = value * scaled_sum(task, r, set.panels[i + outputs], tile + (i + outputs) * kLanes);
            float* out = task.out.data + r * task.out.stride + panel * kLanes;
            if (task.add) value = load(out) + value;
            const int32_t valid = width - panel * kLanes;
            store(out, valid < kLanes ? first(valid, value, zero()) : value);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
