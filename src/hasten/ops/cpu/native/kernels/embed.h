// Embedding lookup: rows of a packed matrix, dequantised to float.
#pragma once

#include "bf16_compressed.h"
#include "grouped_block.h"
#include "int4_block.h"

namespace hasten::HASTEN_ISA {

// Reads 16 weights of output `lane` of a panel from input i on into `out`. Inputs past in_features are skipped.
inline void read_float(const Matrix& matrix, const uint8_t* panel, int lane, int32_t i, float* out) {
    const int32_t count = matrix.in_features - i < 16 ? matrix.in_features - i : 16;
    if (matrix.dtype == Dtype::f32) {
        const float* data = reinterpret_cast<const float*>(panel) + static_cast<int64_t>(i) * kLanes + lane;
        for (int32_t j = 0; j < count; ++j) out[j] = data[j * kLanes];
    } else if (matrix.dtype == Dtype::f16) {
        const uint16_t* data = reinterpret_cast<const uint16_t*>(panel) + static_cast<int64_t>(i) * kLanes + lane;
        alignas(64) uint16_t halves[16] = {};
        for (int32_t j = 0; j < count; ++j) halves[j] = data[j * kLanes];
        store(out, load_f16(halves));
    } else {
        const uint16_t* data = reinterpret_cast<const uint16_t*>(panel) + static_cast<int64_t>(i) * kLanes + 2 * lane;
        for (int32_t j = 0; j < count; ++j) out[j] = bf16_to_float(data[j / 2 * 2 * kLanes + j % 2]);
    }
}

inline void read_int8(const Matrix& matrix, int64_t panel_index, const uint8_t* panel, int lane, int32_t i, float* out) {
    const float scale = matrix.scales[panel_index * kLanes + lane];
    const uint8_t* data = panel + static_cast<int64_t>(i) * kLanes + 4 * lane;
    for (int j = 0; j < 16; ++j) out[j] = scale * static_cast<float>(data[j / 4 * 4 * kLanes + j % 4] - 128);
}

inline void read_int4(const Matrix& matrix, int64_t panel_index, const uint8_t* panel, int lane, int32_t i, float* out) {
    const float scale = matrix.scales[panel_index * kLanes + lane];
    for (int j = 0; j < 16; ++j) out[j] = scale * static_cast<float>(int4_weight(panel, lane, i + j));
}

inline void read_bf16_compressed(const Matrix& matrix, int64_t panel_index, const uint8_t* panel, int lane, int32_t i, float* out) {
    const int base = matrix.exponent_bases[panel_index * 64 + block_byte(lane, 0)];
    const uint8_t* block = panel + i / kBf16BlockInputs * kBf16BlockBytes;
    for (int j = 0; j < 16; ++j) {
        out[j] = bf16_to_float(decompress_weight(block + j / kBf16BlockInputs * kBf16BlockBytes, lane, j % kBf16BlockInputs, base));
    }
    for (const Outlier& outlier : PanelOutliers(matrix, static_cast<int32_t>(panel_index))) {
        const int32_t j = outlier.input - i;
        if (outlier.lane == lane && j >= 0 && j < 16) out[j] = bf16_to_float(outlier.bits);
    }
}

inline void read_grouped(const Matrix& matrix, const uint8_t* panel, int lane, int32_t i, float* out) {
    const int32_t count = matrix.in_features - i < 16 ? matrix.in_features - i : 16;
    for (int32_t j = 0; j < count; ++j) out[j] = grouped_weight(matrix, panel, lane, i + j);
}

inline void embed_row(const EmbedTask& task, int64_t t) {
    const Matrix& matrix = *task.matrix;
    const int64_t id = task.ids[t], panel_index = id / kLanes;
    const int lane = static_cast<int>(id % kLanes);
    const uint8_t* panel = matrix.data + panel_index * matrix.panel_bytes;
    float* out = task.out.data + t * task.out.stride;
    alignas(64) float values[16] = {};
    int32_t i = 0;
    for (; i < matrix.in_features; i += 16) {
        if (matrix.dtype == Dtype::int8)
            read_int8(matrix, panel_index, panel, lane, i, values);
        else if (matrix.dtype == Dtype::int4)
            read_int4(matrix, panel_index, panel, lane, i, values);
        else if (is_grouped(matrix.dtype))
            read_grouped(matrix, panel, lane, i, values);
        else if (matrix.dtype == Dtype::bf16_compressed)
            read_bf16_compressed(matrix, panel_index, panel, lane, i, values);
        else
            read_float(matrix, panel, lane, i, values);
        F32x16 row = load(values);
        if (matrix.in_features - i < 16) row = blend_first(matrix.in_features - i, row, zero());
        store(out + i, task.add ? load(out + i) + row : row);
    }
    for (; i < task.out.stride; i += 16) store(out + i, zero());
}

inline void embed(const EmbedTask& task) {
    for (int64_t t = task.begin; t < task.end; ++t) embed_row(task, t);
}

}  // namespace hasten::HASTEN_ISA
