// Checkpoint tensors into the panels that `linear` reads, with quantisation (round to nearest) on the way.
#pragma once

#include <cassert>

#include "coded.h"
#include "nibbles.h"

namespace hasten::HASTEN_ISA {

constexpr int kPackColumns = 256;      // columns that are widened at a time; a multiple of every group and padding
constexpr float kTinyWeight = 1e-30f;  // rows and groups below are stored as zeros: their scales would not be normal numbers

// One output feature on its way into its panel. source null: a row of zeros.
struct PackRow {
    const Matrix& matrix;
    const uint8_t* source;
    Dtype dtype;
    int64_t column_stride;
    int32_t panel, column;  // where it goes

    uint8_t* data() const { return matrix.data + panel * matrix.panel_bytes; }
};

inline float widen_one(const uint8_t* p, Dtype dtype) {
    if (dtype == Dtype::f32) {
        float value;
        memcpy(&value, p, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, p, 2);
    if (dtype == Dtype::f16) return _cvtsh_ss(half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Columns [begin, begin + count) as floats, then zeros up to a multiple of 64. `out` has room for kPackColumns.
inline void widen_columns(const PackRow& row, int64_t begin, int64_t count, float* out) {
    const int64_t padded = (count + kQuantPad - 1) / kQuantPad * kQuantPad;
    if (row.source == nullptr) count = 0;
    const int64_t size = row.dtype == Dtype::f32 ? 4 : 2;
    const uint8_t* in = row.source + begin * row.column_stride * size;
    int64_t k = 0;
    if (row.column_stride == 1) {
        for (; k + kLanes <= count; k += kLanes) {
            const uint8_t* at = in + k * size;
            store(out + k, row.dtype == Dtype::f32    ? load(reinterpret_cast<const float*>(at))
                           : row.dtype == Dtype::bf16 ? load_bf16(reinterpret_cast<const uint16_t*>(at))
                                                      : load_f16(reinterpret_cast<const uint16_t*>(at)));
        }
    }
    for (; k < count; ++k) out[k] = widen_one(in + k * row.column_stride * size, row.dtype);
    for (; k < padded; ++k) out[k] = 0.0f;
}

// Calls body(begin, columns, floats) for the row in stretches; the floats are zero from the row's end up to a multiple of 64.
template <class Body>
[[gnu::always_inline]] inline void for_each_stretch(const PackRow& row, Body body) {
    alignas(64) float values[kPackColumns];
    for (int64_t begin = 0; begin < row.matrix.in_features; begin += kPackColumns) {
        const int64_t left = row.matrix.in_features - begin;
        const int64_t columns = left < kPackColumns ? left : kPackColumns;
        widen_columns(row, begin, columns, values);
        body(begin, columns, values);
    }
}

// Units of four bytes, one for each line of the panel, into the row's column.
inline void scatter_lines(const PackRow& row, int64_t line, const void* units, int64_t count, uint32_t flip) {
    uint8_t* out = row.data() + line * 64 + row.column * 4;
    const uint8_t* in = static_cast<const uint8_t*>(units);
    for (int64_t i = 0; i < count; ++i) {
        uint32_t unit;
        memcpy(&unit, in + 4 * i, 4);
        unit ^= flip;
        memcpy(out + 64 * i, &unit, 4);
    }
}

inline void pack_f32(const PackRow& row) {
    for_each_stretch(row,
                     [&](int64_t begin, int64_t columns, const float* values) { scatter_lines(row, begin, values, columns, 0); });
}

inline void pack_f16(const PackRow& row) {
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) uint16_t halves[kPackColumns];
        for (int64_t k = 0; k < columns; k += kLanes) store_f16(halves + k, load(values + k));
        uint16_t* out = reinterpret_cast<uint16_t*>(row.data()) + begin * kLanes + row.column;
        for (int64_t k = 0; k < columns; ++k) out[k * kLanes] = halves[k];
    });
}

// Rounded to bf16, `columns` of them and zeros up to a multiple of 32, which is returned.
inline int64_t round_columns(const float* values, int64_t columns, uint16_t* out) {
    const int64_t padded = (columns + 31) / 32 * 32;
    for (int64_t k = 0; k < padded; k += kLanes) store_bf16(out + k, load(values + k));
    return padded;
}

inline void pack_bf16(const PackRow& row) {
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) uint16_t halves[kPackColumns];
        const int64_t padded = round_columns(values, columns, halves);
        scatter_lines(row, begin / 2, halves, padded / 2, 0);
    });
}

inline void note_exception(const PackRow& row, int64_t input, uint16_t bits) {
    int32_t& count = row.matrix.num_exceptions[row.panel];
    Exception* list = row.matrix.exceptions + int64_t{row.panel} * row.matrix.max_exceptions;
    if (count < row.matrix.max_exceptions) {
        list[count] = {static_cast<int32_t>(input), static_cast<uint16_t>(row.column), bits};
    }
    ++count;
}

inline void pack_coded(const PackRow& row) {
    alignas(64) uint16_t halves[kPackColumns];
    int greatest = 0;
    for_each_stretch(row, [&](int64_t, int64_t columns, const float* values) {
        const int64_t padded = round_columns(values, columns, halves);
        for (int64_t k = 0; k < padded; ++k) greatest = exponent_of(halves[k]) > greatest ? exponent_of(halves[k]) : greatest;
    });
    const int base = base_of(greatest);
    for (int i = 0; i < 4; ++i) {
        row.matrix.bases[row.panel * 64 + unit_byte(row.column, i / 2) + i % 2] = static_cast<uint8_t>(base);
    }
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        const int64_t padded = round_columns(values, columns, halves);
        uint8_t* unit = row.data() + begin / kUnitInputs * kUnitBytes;
        for (int64_t k = 0; k < padded; k += kUnitInputs, unit += kUnitBytes) {
            code_unit(halves + k, base, row.column, unit, [&](int i) { note_exception(row, begin + k + i, halves[k + i]); });
        }
    });
}

// Scales of a row that its weight of greatest magnitude is `most` times, stored for its output; the inverse is returned. Rows of
// zeros have the scale 0.
inline F16 scale_row(const PackRow& row, float most) {
    F16 extreme = zero();
    for_each_stretch(row, [&](int64_t, int64_t columns, const float* values) {
        for (int64_t k = 0; k < columns; k += kLanes) extreme = max(extreme, abs(load(values + k)));
    });
    const float largest_weight = largest(extreme);
    const bool zeros = !(largest_weight >= kTinyWeight);
    row.matrix.scales[row.panel * kLanes + row.column] = zeros ? 0.0f : largest_weight / most;
    return zeros ? zero() : broadcast(most / largest_weight);
}

// The stretch's zeros end at a multiple of 64.
inline int64_t padded_columns(int64_t columns) { return (columns + kQuantPad - 1) / kQuantPad * kQuantPad; }

inline void pack_int8(const PackRow& row) {
    const F16 inverse = scale_row(row, 127.0f);
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) int8_t bytes[kPackColumns];
        const int64_t padded = padded_columns(columns);
        for (int64_t k = 0; k < padded; k += kLanes) store_s8(bytes + k, load(values + k) * inverse);
        scatter_lines(row, begin / 4, bytes, padded / 4, 0x80808080u);
    });
}

constexpr float kMostInt4Scale = 15.0f;
constexpr float kMostInt4 = 8.0f * kMostInt4Scale;  // the greatest weight, in units of its output's scale
static_assert(kPackColumns == 16 * kInt4Group);

// 16 groups side by side: lane g of weights[k] is weight k of group g, in units of its output's scale.
struct Groups {
    F16 weights[kInt4Group];

    // Levels from -8 to 7 of weight k, in units of its group's scale.
    static F16 levels(F16 weights, F16 inverse) { return max(min(round(weights * inverse), broadcast(7.0f)), broadcast(-8.0f)); }

    // For each group the whole number with the least squared error. The weight of greatest magnitude of a whole row is kept exactly
    // (level -8), so that rows which were quantised before are kept as they are.
    F16 scales() const {
        F16 best = broadcast(1.0f), least = broadcast(__builtin_inff());
        for (float scale = -kMostInt4Scale; scale <= kMostInt4Scale; ++scale) {
            if (scale == 0.0f) continue;
            F16 total = zero();
            for (const F16& weight : weights) {
                const F16 error = weight - levels(weight, broadcast(1.0f / scale)) * broadcast(scale);
                total = fma(error, error, total);
            }
            const uint32_t better = greater(least, total);
            least = select(better, total, least);
            best = select(better, broadcast(scale), best);
        }
        F16 high = weights[0], low = weights[0];
        for (const F16& weight : weights) high = max(high, weight), low = min(low, weight);
        const F16 edge = broadcast(kMostInt4 * 0.999999f);
        best = select(greater(zero() - low, edge), broadcast(kMostInt4Scale), best);
        return select(greater(high, edge), broadcast(-kMostInt4Scale), best);
    }
};

// `groups` groups of one output, from input `begin` on.
inline void pack_groups(const PackRow& row, int64_t begin, int64_t groups, const Groups& of) {
    alignas(64) int8_t scales[16], nibbles[kInt4Group][16];
    const F16 best = of.scales(), inverse = broadcast(1.0f) / best;
    store_s8(scales, best);
    for (int k = 0; k < kInt4Group; ++k) store_s8(nibbles[k], Groups::levels(of.weights[k], inverse) + broadcast(8.0f));
    for (int64_t g = 0; g < groups; ++g) {
        uint8_t* block = row.data() + (begin + g * kInt4Group) / kInt4Block * kInt4BlockBytes;
        uint8_t* lines = block + nibbles_at(g % kBlockGroups, 0);
        block[scales_at(g % kBlockGroups) + row.column] = static_cast<uint8_t>(scales[g]);
        for (int k = 0; k < 8; ++k) {
            const int at = k / 4 * 8 + k % 4;
            lines[k / 4 * 64 + 4 * row.column + k % 4] = static_cast<uint8_t>(nibbles[at][g] | nibbles[at + 4][g] << 4);
        }
    }
}

inline void pack_int4(const PackRow& row) {
    const F16 inverse = scale_row(row, kMostInt4);
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) float turned[kInt4Group][16] = {};
        const int64_t groups = padded_columns(columns) / kInt4Group;
        for (int64_t g = 0; g < groups; ++g) {
            for (int k = 0; k < kInt4Group; ++k) turned[k][g] = values[g * kInt4Group + k];
        }
        Groups of;
        for (int k = 0; k < kInt4Group; ++k) of.weights[k] = load(turned[k]) * inverse;
        pack_groups(row, begin, groups, of);
    });
}

inline void pack_row(const PackRow& row) {
    switch (row.matrix.dtype) {
        case Dtype::f32:
            return pack_f32(row);
        case Dtype::f16:
            return pack_f16(row);
        case Dtype::bf16:
            return pack_bf16(row);
        case Dtype::bf16_coded:
            return pack_coded(row);
        case Dtype::int8:
            return pack_int8(row);
        case Dtype::int4:
            return pack_int4(row);
    }
}

// Any rows, in any order and by any threads; who packs the last row also writes the rows of zeros that fill its panel.
inline void pack(const PackTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t row_bytes = task.row_stride * (task.source_dtype == Dtype::f32 ? 4 : 2);
    const uint8_t* source = static_cast<const uint8_t*>(task.source);
    const int32_t end = task.row + task.rows;
    for (int32_t row = task.row; row < end; ++row, source += row_bytes) {
        pack_row({matrix, source, task.source_dtype, task.column_stride, row / kLanes, row % kLanes});
    }
    if (end != matrix.out_features || task.rows == 0) return;
    for (int32_t row = end; row < matrix.panels * kLanes; ++row) {
        pack_row({matrix, nullptr, task.source_dtype, 1, row / kLanes, row % kLanes});
    }
}

}  // namespace hasten::HASTEN_ISA
