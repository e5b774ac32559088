// A packed matrix with its memory, and a scalar reading of the layouts documented in kernels.h.
#pragma once

#include "test_harness.h"

namespace check {

using hasten::Groups;

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
        return round_up(out, 16) / 16 * (round_up(in, block_inputs(groups)) / block_inputs(groups)) * block_lines(dtype, groups) *
               64;
    }
    static int64_t block_inputs(Groups groups) { return groups.is_nested ? 256 : groups.inputs; }
    // Lines before the codes: floats, or a line of float16 and the bytes of the groups.
    static int64_t header_lines(Groups groups) {
        const int64_t values = 1 + groups.has_offsets;
        return groups.is_nested ? 1 + round_up(256 / groups.inputs * 16 * values, 64) / 64 : values;
    }
    static int64_t block_lines(hasten::Dtype dtype, Groups groups) {
        return header_lines(groups) + block_inputs(groups) / (dtype == hasten::Dtype::codes4 ? 8 : 4);
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
        matrix.groups = groups;
        matrix.padded_in = static_cast<int32_t>(hasten::is_grouped(dtype) ? round_up(in, block_inputs(groups)) : padded(dtype, in));
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

    // Position of a weight in groups: its block, the group of the block, the byte of its code, and the shift within that byte.
    struct GroupPosition {
        int64_t block, group, byte;
        int shift;
    };
    GroupPosition group_position(int64_t o, int64_t k) const {
        const Groups& groups = matrix.groups;
        const int64_t inputs = block_inputs(groups), i = k % inputs, lane = o % 16;
        const int64_t block = o / 16 * matrix.panel_bytes + k / inputs * block_lines(matrix.dtype, groups) * 64;
        const int64_t codes = block + header_lines(groups) * 64;
        if (matrix.dtype != hasten::Dtype::codes4) return {block, i / groups.inputs, codes + i / 4 * 64 + 4 * lane + i % 4, 0};
        return {block, i / groups.inputs, codes + i / 8 * 64 + 4 * lane + i % 4, i % 8 < 4 ? 0 : 4};
    }
    // The scale (0) or offset (1) of a weight in groups, and where its byte is if it is nested.
    int64_t nested_byte(int64_t o, int64_t k, int value) const {
        const GroupPosition at = group_position(o, k);
        return at.block + 64 + (at.group * (1 + matrix.groups.has_offsets) + value) * 16 + o % 16;
    }
    float group_value(int64_t o, int64_t k, int value) const {
        const int64_t block = group_position(o, k).block;
        float wide;
        uint16_t half;
        if (!matrix.groups.is_nested) {
            std::memcpy(&wide, matrix.data + block + 64 * value + 4 * (o % 16), 4);
            return wide;
        }
        std::memcpy(&half, matrix.data + block + 32 * value + 2 * (o % 16), 2);
        return from_f16(half) * static_cast<float>(static_cast<int8_t>(matrix.data[nested_byte(o, k, value)]));
    }
    int code(int64_t o, int64_t k) const {
        const GroupPosition at = group_position(o, k);
        return matrix.data[at.byte] >> at.shift & (matrix.dtype == hasten::Dtype::codes4 ? 15 : 255);
    }
    int zero() const { return matrix.groups.has_offsets ? 0 : matrix.dtype == hasten::Dtype::codes4 ? 8 : 128; }
    float group_scale(int64_t o, int64_t k) const {
        return matrix.dtype == hasten::Dtype::fp8 ? group_value(o, k, 0) * 0x1p-60f : group_value(o, k, 0);
    }
    float group_offset(int64_t o, int64_t k) const { return matrix.groups.has_offsets ? group_value(o, k, 1) : 0.0f; }
    float grouped_weight(int64_t o, int64_t k) const {
        if (matrix.dtype != hasten::Dtype::fp8)
            return std::fmaf(group_scale(o, k), static_cast<float>(code(o, k) - zero()), group_offset(o, k));
        return fp8_number(o, k) * group_scale(o, k);
    }
    float fp8_number(int64_t o, int64_t k) const {
        const int bits = code(o, k), exponent = bits >> 3 & 15, fraction = bits & 7;
        const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                         : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
        return bits < 128 ? size : -size;
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
