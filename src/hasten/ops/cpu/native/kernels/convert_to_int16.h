// Rows of activations in 16 bits (Int16Rows of kernels.h).
#pragma once

#include "quantize.h"

namespace hasten::HASTEN_ISA {

constexpr float kMaxInt16 = 32512.0f;  // 127 * 256: the upper byte, rounded, is at most 127

// Converts columns [begin, begin + 128) of a row. A block with a NaN or an infinity gets the scale NaN.
inline void convert_block_to_int16(const float* x, int32_t width, int64_t begin, float* scale, uint8_t* data, int32_t* sums) {
    F32x16 values[kInt16BlockInputs / 16];
    AbsMaxRange range;
    for (int i = 0; i < kInt16BlockInputs / 16; ++i) {
        const int64_t k = begin + 16 * i;
        values[i] = k < width ? mask_tail(load(x + k), k, width) : zero();
        range.add(values[i]);
    }
    const float absmax = range.absmax();
    const bool is_zero = absmax <= kMinAbsMax;  // their inverse would overflow
    const F32x16 inverse = broadcast(is_zero ? 0.0f : kMaxInt16 / absmax);
    *scale = is_zero ? 0.0f : absmax / kMaxInt16;
    for (int i = 0; i < kInt16BlockInputs / 16; ++i) {
        const I32x16 q = to_int(values[i] * inverse);
        store_int16_quads(data + 32 * i, q);
        sums[i] = reduce_add(q);
    }
}

inline void convert_to_int16(const ConvertToInt16Task& task) {
    for (int64_t t = task.begin; t < task.end; ++t) {
        const Int16Rows row = task.out.from(t);
        for (int64_t block = 0; block < row.blocks; ++block) {
            convert_block_to_int16(task.x.data + t * task.x.stride, task.width, block * kInt16BlockInputs, row.scales + block,
                                   row.data + block * 2 * kInt16BlockInputs, row.sums + block * 8);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
