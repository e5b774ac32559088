// A packed matrix with its memory, and a scalar reading of the layouts documented in kernels.h.
#pragma once

#include "test_harness.h"

namespace check {

// The groups of types that have some.
struct Groups {
    int inputs = 0;
    bool has_offsets = false;
};

struct PackedMatrix {
    hasten::Matrix matrix;
    Buffer<uint8_t> data;
    Buffer<float> scales;
    Buffer<uint8_t> exponent_bases;
    Buffer<hasten::Outlier> outliers;
    Buffer<int32_t> num_outliers;

    static int64_t padded(hasten::Dtype dtype, int in) {
        switch (dtype) {
            case hasten::Dtype::f32:
            case hasten::Dtype::f16:
                return in;
            case hasten::Dtype::bf16:
            case hasten::Dtype::bf16_compressed:
                return round_up(in, 32);
            default:
                return round_up(in, 64);
        }
    }
    // Twice the bits of a weight: int4 has half a bit for its share of the group scale.
    static int64_t half_bits(hasten::Dtype dtype) {
        switch (dtype) {
            case hasten::Dtype::f32:
                return 64;
            case hasten::Dtype::bf16:
            case hasten::Dtype::f16:
                return 32;
            case hasten::Dtype::bf16_compressed:
                return 24;
            case hasten::Dtype::int8:
                return 16;
            default:
                return 9;
        }
    }

    static int64_t data_bytes(hasten::Dtype dtype, int out, int in, Groups groups) {
        if (!hasten::is_grouped(dtype)) return round_up(out, 16) * padded(dtype, in) * half_bits(dtype) / 16;
        const int64_t lines = 1 + groups.has_offsets + groups.inputs / (dtype == hasten::Dtype::codes4 ? 8 : 4);
        return round_up(out, 16) / 16 * (round_up(in, groups.inputs) / groups.inputs) * lines * 64;
    }

    PackedMatrix(hasten::Dtype dtype, int out, int in, Groups groups = {})
        : matrix{},
          data(data_bytes(dtype, out, in, groups)),
          scales(has_scales(dtype) ? round_up(out, 16) : 0),
          exponent_bases(dtype == hasten::Dtype::bf16_compressed ? round_up(out, 16) * 4 : 0),
          outliers(dtype == hasten::Dtype::bf16_compressed ? round_up(out, 16) / 16 * kMaxOutliers : 0),
          num_outliers(dtype == hasten::Dtype::bf16_compressed ? round_up(out, 16) / 16 : 0) {
        matrix.dtype = dtype;
        matrix.out_features = out;
        matrix.in_features = in;
        matrix.group_inputs = groups.inputs;
        matrix.has_offsets = groups.has_offsets;
        matrix.padded_in = static_cast<int32_t>(hasten::is_grouped(dtype) ? round_up(in, groups.inputs) : padded(dtype, in));
        matrix.panels = static_cast<int32_t>(round_up(out, 16) / 16);
        matrix.data = data.data();
        matrix.panel_bytes = data_bytes(dtype, 16, in, groups);
        matrix.scales = has_scales(dtype) ? scales.data() : nullptr;
        matrix.exponent_bases = exponent_bases.data();
        matrix.outliers = outliers.data();
        matrix.num_outliers = num_outliers.data();
        matrix.max_outliers = kMaxOutliers;
    }
    static constexpr int kMaxOutliers = 40;
    static bool has_scales(hasten::Dtype dtype) { return dtype == hasten::Dtype::int8 || dtype == hasten::Dtype::int4; }

    // Position of an int4 weight: the byte of its group scale, the byte of its nibble, and the shift within that byte.
    struct NibblePosition {
        int64_t scale, byte;
        int shift;
    };
    NibblePosition nibble_position(int64_t o, int64_t k) const {
        const int64_t block = o / 16 * matrix.panel_bytes + k / 64 * 576, line = 1 + k % 64 / 8;
        return {block + k % 64 / 16 * 16 + o % 16, block + line * 64 + o % 16 * 4 + k % 4, k % 8 < 4 ? 0 : 4};
    }

    // Position of a bf16_compressed weight: its low byte, the byte of its nibble, and the shift within that byte.
    struct CompressedPosition {
        int64_t low_byte, nibble_byte;
        int shift;
    };
    CompressedPosition compressed_position(int64_t o, int64_t k) const {
        const int64_t block = o / 16 * matrix.panel_bytes + k / 8 * 192, line = k % 8 / 2;
        const int64_t byte = o % 16 / 4 * 16 + line % 2 * 8 + o % 4 * 2 + k % 2;
        return {block + line / 2 * 64 + byte, block + 128 + byte, line < 2 ? 0 : 4};
    }
    static int64_t exponent_base_index(int64_t o) { return o / 16 * 64 + o % 16 / 4 * 16 + o % 4 * 2; }
    const hasten::Outlier* outlier(int64_t o, int64_t k) const {
        const hasten::Outlier* list = matrix.outliers + o / 16 * matrix.max_outliers;
        for (int i = 0; i < matrix.num_outliers[o / 16]; ++i) {
            if (list[i].lane == o % 16 && list[i].input == k) return list + i;
        }
        return nullptr;
    }
    float compressed_weight(int64_t o, int64_t k) const {
        if (const hasten::Outlier* outlier_found = outlier(o, k)) return from_bf16(outlier_found->bits);
        const CompressedPosition at = compressed_position(o, k);
        const int nibble_byte = matrix.data[at.nibble_byte] >> at.shift & 15, code = nibble_byte % 8;
        const int high_byte = nibble_byte / 8 * 128 + (code == 0 ? 0 : matrix.exponent_bases[exponent_base_index(o)] + code);
        return from_bf16(static_cast<uint16_t>(high_byte * 256 + matrix.data[at.low_byte]));
    }

    // Position of a weight in groups: the byte of its scale, with its offset 64 bytes on, the byte of its code, and the shift
    // within that byte.
    struct GroupPosition {
        int64_t scale, byte;
        int shift;
    };
    GroupPosition group_position(int64_t o, int64_t k) const {
        const int64_t group = k / matrix.group_inputs, i = k % matrix.group_inputs;
        const int64_t begin =
            o / 16 * matrix.panel_bytes + group * data_bytes(matrix.dtype, 16, 1, {matrix.group_inputs, matrix.has_offsets});
        const int64_t codes = begin + (matrix.has_offsets ? 128 : 64), lane = o % 16;
        if (matrix.dtype != hasten::Dtype::codes4) return {begin + 4 * lane, codes + i / 4 * 64 + 4 * lane + i % 4, 0};
        return {begin + 4 * lane, codes + i / 8 * 64 + 4 * lane + i % 4, i % 8 < 4 ? 0 : 4};
    }
    int code(int64_t o, int64_t k) const {
        const GroupPosition at = group_position(o, k);
        return matrix.data[at.byte] >> at.shift & (matrix.dtype == hasten::Dtype::codes4 ? 15 : 255);
    }
    int zero() const { return matrix.has_offsets ? 0 : matrix.dtype == hasten::Dtype::codes4 ? 8 : 128; }
    float group_scale(int64_t o, int64_t k) const {
        float value;
        std::memcpy(&value, matrix.data + group_position(o, k).scale, 4);
        return matrix.dtype == hasten::Dtype::fp8 ? value * 0x1p-120f : value;
    }
    float group_offset(int64_t o, int64_t k) const {
        float value = 0.0f;
        if (matrix.has_offsets) std::memcpy(&value, matrix.data + group_position(o, k).scale + 64, 4);
        return value;
    }
    float grouped_weight(int64_t o, int64_t k) const {
        if (matrix.dtype != hasten::Dtype::fp8)
            return std::fmaf(group_scale(o, k), static_cast<float>(code(o, k) - zero()), group_offset(o, k));
        const int bits = code(o, k), exponent = bits >> 3 & 15, fraction = bits & 7;
        const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                         : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
        return (bits < 128 ? size : -size) * group_scale(o, k);
    }

    // Weight (o, k) before its scale: a value, or a level after subtraction of the zero point.
    float level(int64_t o, int64_t k) const {
        const uint8_t* panel = matrix.data + o / 16 * matrix.panel_bytes;
        const int64_t lane = o % 16;
        float wide;
        uint16_t half;
        if (hasten::is_grouped(matrix.dtype)) return grouped_weight(o, k);
        switch (matrix.dtype) {
            case hasten::Dtype::f32:
                std::memcpy(&wide, panel + (k * 16 + lane) * 4, 4);
                return wide;
            case hasten::Dtype::f16:
                std::memcpy(&half, panel + (k * 16 + lane) * 2, 2);
                return from_f16(half);
            case hasten::Dtype::bf16:
                std::memcpy(&half, panel + ((k / 2 * 16 + lane) * 2 + k % 2) * 2, 2);
                return from_bf16(half);
            case hasten::Dtype::bf16_compressed:
                return compressed_weight(o, k);
            case hasten::Dtype::int8:
                return static_cast<float>(panel[(k / 4 * 16 + lane) * 4 + k % 4]) - 128.0f;
            default:
                break;
        }
        const NibblePosition at = nibble_position(o, k);
        const int level = (matrix.data[at.byte] >> at.shift & 15) - 8;
        return static_cast<float>(static_cast<int8_t>(matrix.data[at.scale]) * level);
    }
    // The largest possible weight, -15 * -8, for output 0 and input k.
    void set_extreme_weight(int64_t k) {
        const NibblePosition at = nibble_position(0, k);
        matrix.data[at.scale] = static_cast<uint8_t>(-15);
        matrix.data[at.byte] = 0;
    }
    float scale(int64_t o) const { return has_scales(matrix.dtype) ? matrix.scales[o] : 1.0f; }
};

}  // namespace check
