// Checkpoint tensors into the panels that `linear` reads, with quantisation (round to nearest) on the way.
#pragma once

#include <cassert>

#include "coded.h"

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

inline void pack_int8(const PackRow& row) {
    F16 extreme = zero();
    for_each_stretch(row, [&](int64_t, int64_t columns, const float* values) {
        for (int64_t k = 0; k < columns; k += kLanes) extreme = max(extreme, abs(load(values + k)));
    });
    const float largest_weight = largest(extreme);
    const bool zeros = !(largest_weight >= kTinyWeight);
    const F16 inverse = zeros ? zero() : broadcast(127.0f / largest_weight);
    row.matrix.scales[row.panel * kLanes + row.column] = zeros ? 0.0f : largest_weight / 127.0f;
    for_each_stretch(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) int8_t bytes[kPackColumns];
        const int64_t padded = (columns + kQuantPad - 1) / kQuantPad * kQuantPad;
        for (int64_t k = 0; k < padded; k += kLanes) store_s8(bytes + k, load(values + k) * inverse);
        scatter_lines(row, begin / 4, bytes, padded / 4, 0x80808080u);
    });
}

inline float round_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    memcpy(&value, &bits, 4);
    return value;
}

// The values of a group in units of its scale, in [-8, 7].
inline F16 int4_level(F16 value, F16 inverse) { return max(min(round(value * inverse), broadcast(7.0f)), broadcast(-8.0f)); }

// The scale with the least squared error among those that put the weight of greatest magnitude near the ends of the range,
// or clip it. Negative scales let a positive weight have the level -8. A group of zeros has scale 0.
inline float int4_scale(const float* values, int64_t group) {
    constexpr float kLevels[] = {-8.0f, -7.5f, -7.0f, -8.4f, -8.8f, -9.2f, -9.7f, -10.3f, 7.0f, 7.4f, 7.8f, 8.3f, 8.9f};
    F16 high = load(values), low = high;
    for (int64_t k = kLanes; k < group; k += kLanes) {
        high = max(high, load(values + k));
        low = min(low, load(values + k));
    }
    const float top = largest(high), bottom = largest(zero() - low);
    const float extreme = top >= bottom ? top : -bottom;
    if (!(__builtin_fabsf(extreme) >= kTinyWeight)) return 0.0f;
    float best = 0.0f, least = __builtin_inff();
    for (const float level : kLevels) {
        const float scale = round_to_bf16(extreme / level);
        const F16 step = broadcast(scale), inverse = broadcast(1.0f / scale);
        F16 squares = zero();
        for (int64_t k = 0; k < group; k += kLanes) {
            const F16 value = load(values + k);
            const F16 error = value - int4_level(value, inverse) * step;
            squares = fma(error, error, squares);
        }
        const float total = sum(squares);
        if (total < least) {
            least = total;
            best = scale;
        }
    }
    return best;
}

// Levels (plus 8) of `columns` values, eight inputs to four bytes.
inline void scatter_nibbles(const PackRow& row, int64_t begin, int64_t columns, const float* values, float scale) {
    alignas(64) int8_t nibbles[128];
    alignas(64) uint32_t units[128 / 8];
    const F16 inverse = broadcast(scale == 0.0f ? 0.0f : 1.0f / scale);
    for (int64_t k = 0; k < columns; k += kLanes) store_s8(nibbles + k, int4_level(load(values + k), inverse) + broadcast(8.0f));
    for (int64_t k = 0; k < columns; k += 8) {
        uint32_t low, high;
        memcpy(&low, nibbles + k, 4);
        memcpy(&high, nibbles + k + 4, 4);
        units[k / 8] = low | high << 4;
    }
    scatter_lines(row, begin / 8, units, columns / 8, 0);
}

inline void pack_int4(const PackRow& row) {
    const Matrix& matrix = row.matrix;
    assert(matrix.group == 32 || matrix.group == 64 || matrix.group == 128);
    for_each_stretch(row, [&](int64_t begin, int64_t columns, float* values) {
        // The stretch's zeros end at a multiple of 64; a last group of 128 may reach further.
        const int64_t padded = matrix.padded_in - begin < kPackColumns ? matrix.padded_in - begin : kPackColumns;
        for (int64_t k = (columns + kQuantPad - 1) / kQuantPad * kQuantPad; k < padded; ++k) values[k] = 0.0f;
        for (int64_t k = 0; k < padded; k += matrix.group) {
            const float scale = int4_scale(values + k, matrix.group);
            uint32_t bits;
            memcpy(&bits, &scale, 4);
            const int64_t group = row.panel * int64_t{matrix.groups()} + (begin + k) / matrix.group;
            matrix.group_scales[group * kLanes + row.column] = static_cast<uint16_t>(bits >> 16);
            scatter_nibbles(row, begin + k, matrix.group, values + k, scale);
        }
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
