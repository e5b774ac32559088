// Weight packing: converts and quantises (round to nearest) rows of checkpoint tensors into the panels of kernels.h.
#pragma once

#include "bf16_compressed.h"
#include "grouped_block.h"
#include "int4_block.h"

namespace hasten::HASTEN_ISA {

constexpr int kPackColumns = 256;     // columns that are converted at a time; a multiple of every group and padding
constexpr float kMinWeight = 1e-30f;  // rows and groups below are stored as zeros, since their scales would be subnormal

// One output feature to pack. source null: a row of zeros.
struct PackRow {
    const Matrix& matrix;
    const uint8_t* source;
    Dtype dtype;
    int64_t column_stride;
    int32_t panel, column;  // destination

    uint8_t* data() const { return matrix.data + panel * matrix.panel_bytes; }
};

inline float load_scalar(const uint8_t* p, Dtype dtype) {
    if (dtype == Dtype::f32) {
        float value;
        memcpy(&value, p, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, p, 2);
    return dtype == Dtype::f16 ? _cvtsh_ss(half) : bf16_to_float(half);
}

// The multiple of 64 up to which a block of columns is filled with zeros.
inline int64_t padded_columns(int64_t columns) { return (columns + kInt8RowPadding - 1) / kInt8RowPadding * kInt8RowPadding; }

// Loads columns [begin, begin + count) as floats, then zeros up to a multiple of 64. `out` has room for kPackColumns.
inline void load_columns(const PackRow& row, int64_t begin, int64_t count, float* out) {
    const int64_t padded = padded_columns(count);
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
    for (; k < count; ++k) out[k] = load_scalar(in + k * row.column_stride * size, row.dtype);
    for (; k < padded; ++k) out[k] = 0.0f;
}

// Calls body(begin, columns, floats) for blocks of the row's columns. The floats are zero from the end of the row to a multiple of
// 64.
template <class Body>
[[gnu::always_inline]] inline void for_each_column_block(const PackRow& row, Body body) {
    alignas(64) float values[kPackColumns];
    for (int64_t begin = 0; begin < row.matrix.in_features; begin += kPackColumns) {
        const int64_t remaining = row.matrix.in_features - begin;
        const int64_t columns = remaining < kPackColumns ? remaining : kPackColumns;
        load_columns(row, begin, columns, values);
        body(begin, columns, values);
    }
}

// Scatters 4-byte words to consecutive lines of the panel, at the row's column.
inline void scatter_to_panel(const PackRow& row, int64_t line, const void* words, int64_t count, uint32_t xor_mask) {
    uint8_t* out = row.data() + line * 64 + row.column * 4;
    const uint8_t* in = static_cast<const uint8_t*>(words);
    for (int64_t i = 0; i < count; ++i) {
        uint32_t word;
        memcpy(&word, in + 4 * i, 4);
        word ^= xor_mask;
        memcpy(out + 64 * i, &word, 4);
    }
}

// Finds NaN and infinity among the weights as they are stored: the product with 0 is NaN for these alone.
class FiniteCheck {
public:
    void add(F32x16 weights) { nan_lanes_ = fma(weights, zero(), nan_lanes_); }
    bool passed() const { return reduce_add(nan_lanes_) == 0.0f; }

private:
    F32x16 nan_lanes_ = zero();
};

// The functions below pack one row and return whether all its weights are finite.

inline bool pack_f32(const PackRow& row) {
    FiniteCheck finite;
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        for (int64_t k = 0; k < columns; k += kLanes) finite.add(load(values + k));
        scatter_to_panel(row, begin, values, columns, 0);
    });
    return finite.passed();
}

inline bool pack_f16(const PackRow& row) {
    FiniteCheck finite;
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) uint16_t halves[kPackColumns];
        for (int64_t k = 0; k < columns; k += kLanes) {
            store_f16(halves + k, load(values + k));
            finite.add(load_f16(halves + k));
        }
        uint16_t* out = reinterpret_cast<uint16_t*>(row.data()) + begin * kLanes + row.column;
        for (int64_t k = 0; k < columns; ++k) out[k * kLanes] = halves[k];
    });
    return finite.passed();
}

// Rounds `columns` values to bf16, with zeros up to a multiple of 32. Returns this multiple.
inline int64_t columns_to_bf16(const float* values, int64_t columns, uint16_t* out, FiniteCheck& finite) {
    const int64_t padded = (columns + 31) / 32 * 32;
    for (int64_t k = 0; k < padded; k += kLanes) {
        store_bf16(out + k, load(values + k));
        finite.add(load_bf16(out + k));
    }
    return padded;
}

inline bool pack_bf16(const PackRow& row) {
    FiniteCheck finite;
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) uint16_t halves[kPackColumns];
        const int64_t padded = columns_to_bf16(values, columns, halves, finite);
        scatter_to_panel(row, begin / 2, halves, padded / 2, 0);
    });
    return finite.passed();
}

inline void append_outlier(const PackRow& row, int64_t input, uint16_t bits) {
    int32_t& count = row.matrix.num_outliers[row.panel];
    Outlier* list = row.matrix.outliers + int64_t{row.panel} * row.matrix.max_outliers;
    if (count < row.matrix.max_outliers) {
        list[count] = {static_cast<int32_t>(input), static_cast<uint16_t>(row.column), bits};
    }
    ++count;
}

inline bool pack_bf16_compressed(const PackRow& row) {
    alignas(64) uint16_t halves[kPackColumns];
    FiniteCheck finite;
    int max_exponent = 0;
    for_each_column_block(row, [&](int64_t, int64_t columns, const float* values) {
        const int64_t padded = columns_to_bf16(values, columns, halves, finite);
        for (int64_t k = 0; k < padded; ++k)
            max_exponent = exponent_high_bits(halves[k]) > max_exponent ? exponent_high_bits(halves[k]) : max_exponent;
    });
    const int base = exponent_base_of(max_exponent);
    for (int i = 0; i < 4; ++i) {
        row.matrix.exponent_bases[row.panel * 64 + block_byte(row.column, i / 2) + i % 2] = static_cast<uint8_t>(base);
    }
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        const int64_t padded = columns_to_bf16(values, columns, halves, finite);
        uint8_t* block = row.data() + begin / kBf16BlockInputs * kBf16BlockBytes;
        for (int64_t k = 0; k < padded; k += kBf16BlockInputs, block += kBf16BlockBytes) {
            compress_block(halves + k, base, row.column, block, [&](int i) { append_outlier(row, begin + k + i, halves[k + i]); });
        }
    });
    return finite.passed();
}

// Stores the output's scale, with which its largest weight is max_level, and returns the inverse. The scale of a zero row is 0.
inline F32x16 set_output_scale(const PackRow& row, float max_level, FiniteCheck& finite) {
    F32x16 absmax = zero();
    for_each_column_block(row, [&](int64_t, int64_t columns, const float* values) {
        for (int64_t k = 0; k < columns; k += kLanes) {
            absmax = max(absmax, abs(load(values + k)));
            finite.add(load(values + k));
        }
    });
    const float max_weight = reduce_max(absmax);
    const bool is_zero = !(max_weight >= kMinWeight);
    row.matrix.scales[row.panel * kLanes + row.column] = is_zero ? 0.0f : max_weight / max_level;
    return is_zero ? zero() : broadcast(max_level / max_weight);
}

inline bool pack_int8(const PackRow& row) {
    FiniteCheck finite;
    const F32x16 inverse = set_output_scale(row, 127.0f, finite);
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) int8_t bytes[kPackColumns];
        const int64_t padded = padded_columns(columns);
        for (int64_t k = 0; k < padded; k += kLanes) store_s8(bytes + k, load(values + k) * inverse);
        scatter_to_panel(row, begin / 4, bytes, padded / 4, 0x80808080u);
    });
    return finite.passed();
}

constexpr float kMaxInt4GroupScale = 15.0f;
constexpr float kMaxInt4Weight = 8.0f * kMaxInt4GroupScale;  // in units of the output's scale
static_assert(kPackColumns == 16 * kInt4GroupInputs);

// 16 groups side by side: lane g of weights[k] is weight k of group g, in units of the output's scale.
struct Int4Groups {
    F32x16 weights[kInt4GroupInputs];

    // Quantised levels -8 to 7, in units of the group scale.
    static F32x16 quantize(F32x16 weights, F32x16 inverse) {
        return max(min(round(weights * inverse), broadcast(7.0f)), broadcast(-8.0f));
    }

    // The integer scale with the least squared error for each group. The largest weight of a whole row is kept exactly (level -8),
    // so that rows that were quantised before keep their values.
    F32x16 best_scales() const {
        F32x16 best = broadcast(1.0f), min_error = broadcast(__builtin_inff());
        for (float scale = -kMaxInt4GroupScale; scale <= kMaxInt4GroupScale; ++scale) {
            if (scale == 0.0f) continue;
            F32x16 total = zero();
            for (const F32x16& weight : weights) {
                const F32x16 error = weight - quantize(weight, broadcast(1.0f / scale)) * broadcast(scale);
                total = fma(error, error, total);
            }
            const uint32_t is_better = greater(min_error, total);
            min_error = select(is_better, total, min_error);
            best = select(is_better, broadcast(scale), best);
        }
        F32x16 max_weight = weights[0], min_weight = weights[0];
        for (const F32x16& weight : weights) max_weight = max(max_weight, weight), min_weight = min(min_weight, weight);
        const F32x16 extreme = broadcast(kMaxInt4Weight * 0.999999f);
        best = select(greater(zero() - min_weight, extreme), broadcast(kMaxInt4GroupScale), best);
        return select(greater(max_weight, extreme), broadcast(-kMaxInt4GroupScale), best);
    }
};

// Packs `groups` groups of one output, from input `begin` on.
inline void pack_groups(const PackRow& row, int64_t begin, int64_t groups, const Int4Groups& int4) {
    alignas(64) int8_t scales[16], nibbles[kInt4GroupInputs][16];
    const F32x16 best = int4.best_scales(), inverse = broadcast(1.0f) / best;
    store_s8(scales, best);
    for (int k = 0; k < kInt4GroupInputs; ++k)
        store_s8(nibbles[k], Int4Groups::quantize(int4.weights[k], inverse) + broadcast(8.0f));
    for (int64_t g = 0; g < groups; ++g) {
        uint8_t* block = row.data() + (begin + g * kInt4GroupInputs) / kInt4BlockInputs * kInt4BlockBytes;
        uint8_t* lines = block + group_nibbles_offset(g % kInt4BlockGroups, 0);
        block[group_scales_offset(g % kInt4BlockGroups) + row.column] = static_cast<uint8_t>(scales[g]);
        for (int k = 0; k < 8; ++k) {
            const int at = k / 4 * 8 + k % 4;
            lines[k / 4 * 64 + 4 * row.column + k % 4] = static_cast<uint8_t>(nibbles[at][g] | nibbles[at + 4][g] << 4);
        }
    }
}

inline bool pack_int4(const PackRow& row) {
    FiniteCheck finite;
    const F32x16 inverse = set_output_scale(row, kMaxInt4Weight, finite);
    for_each_column_block(row, [&](int64_t begin, int64_t columns, const float* values) {
        alignas(64) float transposed[kInt4GroupInputs][16] = {};
        const int64_t groups = padded_columns(columns) / kInt4GroupInputs;
        for (int64_t g = 0; g < groups; ++g) {
            for (int k = 0; k < kInt4GroupInputs; ++k) transposed[k][g] = values[g * kInt4GroupInputs + k];
        }
        Int4Groups int4;
        for (int k = 0; k < kInt4GroupInputs; ++k) int4.weights[k] = load(transposed[k]) * inverse;
        pack_groups(row, begin, groups, int4);
    });
    return finite.passed();
}

// Writes four codes of an output to a line of its panel, or eight (`high` set) to a line of codes4.
inline void store_line_codes(uint8_t* line, int lane, const uint8_t* low, int64_t low_count, const uint8_t* high,
                             int64_t high_count) {
    uint8_t bytes[4] = {};
    for (int64_t j = 0; j < 4 && j < low_count; ++j) bytes[j] = low[j];
    for (int64_t j = 0; high != nullptr && j < 4 && j < high_count; ++j) bytes[j] = static_cast<uint8_t>(bytes[j] | high[j] << 4);
    memcpy(line + 4 * lane, bytes, 4);
}

constexpr uint8_t kFp8Nan = 0x7f;  // without its sign

// Packs the codes of one output. Returns whether FP8 numbers are finite.
inline bool pack_code_lines(const Matrix& matrix, int32_t row, const uint8_t* codes) {
    const BlockLayout layout(matrix);
    uint8_t* block = matrix.data + row / kLanes * matrix.panel_bytes;
    for (int64_t k = 0; k < matrix.in_features; k += layout.inputs, block += layout.bytes) {
        const int64_t end = k + layout.inputs < matrix.in_features ? k + layout.inputs : matrix.in_features;
        uint8_t* line = block + layout.codes_begin;
        for (int64_t i = k; i < end; i += layout.line_inputs, line += 64) {
            const uint8_t* high = layout.line_inputs == 8 ? codes + i + 4 : nullptr;
            store_line_codes(line, row % kLanes, codes + i, end - i, high, end - i - 4);
        }
    }
    if (matrix.dtype != Dtype::fp8) return true;
    bool all_finite = true;
    for (int64_t i = 0; i < matrix.in_features; ++i) all_finite = all_finite && (codes[i] & 0x7f) != kFp8Nan;
    return all_finite;
}

// Packs one output of a quantised matrix. codes null: a row of zeros.
inline bool pack_codes_row(const Matrix& matrix, int32_t row, const uint8_t* codes, const float* scales, const float* offsets) {
    const float factor = matrix.dtype == Dtype::fp8 ? kFp8Factor : 1.0f;
    const float largest = matrix.dtype == Dtype::fp8 ? 1.0f : matrix.dtype == Dtype::codes4 ? 16.0f : 256.0f;
    uint8_t* block = matrix.data + row / kLanes * matrix.panel_bytes + 4 * (row % kLanes);
    bool all_finite = true;
    for (int64_t g = 0; g < num_groups(matrix); ++g, block += block_bytes(matrix.dtype, matrix.groups)) {
        const float scale = codes == nullptr ? 0.0f : scales[g] * factor;
        const float offset = codes == nullptr || offsets == nullptr ? 0.0f : offsets[g];
        all_finite = all_finite && __builtin_isfinite(scale * largest + offset);
        memcpy(block, &scale, 4);
        if (matrix.groups.has_offsets) memcpy(block + 64, &offset, 4);
    }
    return codes == nullptr || (pack_code_lines(matrix, row, codes) && all_finite);
}

// The scales and offsets of one output of nested groups. task null: a row of zeros.
inline bool pack_nested_scales(const Matrix& matrix, int32_t row, const PackNestedTask* task) {
    const BlockLayout layout(matrix);
    const int lane = row % kLanes;
    const int64_t source = task == nullptr ? 0 : row - task->row, groups_per_block = layout.inputs / layout.groups.inputs;
    bool all_finite = true;
    for (int64_t b = 0; b < num_blocks(matrix); ++b) {
        uint8_t* block = matrix.data + row / kLanes * matrix.panel_bytes + b * layout.bytes;
        const bool has_offsets = layout.groups.has_offsets;
        const int64_t at = source * num_blocks(matrix) + b;
        const uint16_t scale = task == nullptr ? 0 : task->block_scales[at];
        const uint16_t offset = task == nullptr || !has_offsets ? 0 : task->block_offsets[at];
        memcpy(block + 2 * lane, &scale, 2);
        memcpy(block + 32 + 2 * lane, &offset, 2);
        all_finite = all_finite && (scale & 0x7c00) != 0x7c00 && (offset & 0x7c00) != 0x7c00;
        for (int64_t g = 0; g < groups_per_block && b * groups_per_block + g < num_groups(matrix); ++g) {
            const int64_t group = source * num_groups(matrix) + b * groups_per_block + g;
            const_cast<int8_t*>(layout.nested(block, g, 0))[lane] = task == nullptr ? int8_t{0} : task->scales[group];
            if (has_offsets)
                const_cast<int8_t*>(layout.nested(block, g, 1))[lane] = task == nullptr ? int8_t{0} : task->offsets[group];
        }
    }
    return all_finite;
}

// As `pack_codes`, of nested groups.
inline bool pack_nested(const PackNestedTask& task) {
    const Matrix& matrix = *task.matrix;
    bool all_finite = true;
    for (int32_t i = 0; i < task.rows; ++i) {
        if (!pack_nested_scales(matrix, task.row + i, &task)) all_finite = false;
        pack_code_lines(matrix, task.row + i, task.codes + i * task.row_stride);
    }
    if (task.row + task.rows != matrix.out_features || task.rows == 0) return all_finite;
    for (int32_t row = matrix.out_features; row < matrix.panels * kLanes; ++row) pack_nested_scales(matrix, row, nullptr);
    return all_finite;
}

inline bool pack_int8_codes_row(const Matrix& matrix, int32_t row, const uint8_t* codes, const float* scales) {
    matrix.scales[row] = codes == nullptr ? 0.0f : scales[0];
    uint8_t* out = matrix.data + row / kLanes * matrix.panel_bytes + 4 * (row % kLanes);
    for (int64_t i = 0; i < matrix.padded_in; i += 4, out += 64) {
        uint8_t bytes[4] = {128, 128, 128, 128};
        for (int64_t j = i; codes != nullptr && j < i + 4 && j < matrix.in_features; ++j) bytes[j - i] = codes[j];
        memcpy(out, bytes, 4);
    }
    return __builtin_isfinite(matrix.scales[row]);
}

// As `pack`, of codes.
inline bool pack_codes(const PackCodesTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t groups = matrix.dtype == Dtype::int8 ? 1 : num_groups(matrix);
    const auto pack_one = [&](int32_t row, const uint8_t* codes, int64_t first_scale) {
        const float* offsets = task.offsets == nullptr ? nullptr : task.offsets + first_scale;
        if (matrix.dtype == Dtype::int8) return pack_int8_codes_row(matrix, row, codes, task.scales + first_scale);
        return pack_codes_row(matrix, row, codes, task.scales + first_scale, offsets);
    };
    bool all_finite = true;
    for (int32_t i = 0; i < task.rows; ++i) {
        if (!pack_one(task.row + i, task.codes + i * task.row_stride, i * groups)) all_finite = false;
    }
    if (task.row + task.rows != matrix.out_features || task.rows == 0) return all_finite;
    for (int32_t row = matrix.out_features; row < matrix.panels * kLanes; ++row) pack_one(row, nullptr, 0);
    return all_finite;
}

inline bool pack_row(const PackRow& row) {
    switch (row.matrix.dtype) {
        case Dtype::f32:
            return pack_f32(row);
        case Dtype::f16:
            return pack_f16(row);
        case Dtype::bf16:
            return pack_bf16(row);
        case Dtype::bf16_compressed:
            return pack_bf16_compressed(row);
        case Dtype::int8:
            return pack_int8(row);
        case Dtype::int4:
            return pack_int4(row);
        default:
            return false;  // pack_codes packs the others
    }
}

// Packs rows in any order and in any thread. The task with the last row also writes the zero rows that pad its panel.
inline bool pack(const PackTask& task) {
    bool all_finite = true;
    const Matrix& matrix = *task.matrix;
    const int64_t row_bytes = task.row_stride * (task.source_dtype == Dtype::f32 ? 4 : 2);
    const uint8_t* source = static_cast<const uint8_t*>(task.source);
    const int32_t end = task.row + task.rows;
    for (int32_t row = task.row; row < end; ++row, source += row_bytes) {
        if (!pack_row({matrix, source, task.source_dtype, task.column_stride, row / kLanes, row % kLanes})) all_finite = false;
    }
    if (end != matrix.out_features || task.rows == 0) return all_finite;
    for (int32_t row = end; row < matrix.panels * kLanes; ++row) {
        pack_row({matrix, nullptr, task.source_dtype, 1, row / kLanes, row % kLanes});
    }
    return all_finite;
}

}  // namespace hasten::HASTEN_ISA
