// A packed matrix with its memory, and a scalar reading of the layouts that kernels.h documents.
#pragma once

#include "check.h"

namespace check {

struct Packed {
    hasten::Matrix matrix;
    Buffer<uint8_t> data;
    Buffer<float> scales;
    Buffer<uint16_t> group_scales;
    Buffer<uint8_t> bases;
    Buffer<hasten::Exception> exceptions;
    Buffer<int32_t> num_exceptions;

    static int64_t padded(hasten::Dtype dtype, int in, int group) {
        switch (dtype) {
            case hasten::Dtype::f32:
            case hasten::Dtype::f16:
                return in;
            case hasten::Dtype::bf16:
            case hasten::Dtype::bf16_coded:
                return round_up(in, 32);
            case hasten::Dtype::int8:
                return round_up(in, 64);
            default:
                return round_up(in, group > 64 ? group : 64);
        }
    }
    static int64_t bits(hasten::Dtype dtype) {
        switch (dtype) {
            case hasten::Dtype::f32:
                return 32;
            case hasten::Dtype::bf16:
            case hasten::Dtype::f16:
                return 16;
            case hasten::Dtype::bf16_coded:
                return 12;
            case hasten::Dtype::int8:
                return 8;
            default:
                return 4;
        }
    }

    Packed(hasten::Dtype dtype, int out, int in, int group)
        : matrix{},
          data(round_up(out, 16) * padded(dtype, in, group) * bits(dtype) / 8),
          scales(dtype == hasten::Dtype::int8 ? round_up(out, 16) : 0),
          group_scales(dtype == hasten::Dtype::int4 ? round_up(out, 16) * padded(dtype, in, group) / group : 0),
          bases(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) * 4 : 0),
          exceptions(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) / 16 * kMostExceptions : 0),
          num_exceptions(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) / 16 : 0) {
        matrix.dtype = dtype;
        matrix.out_features = out;
        matrix.in_features = in;
        matrix.padded_in = static_cast<int32_t>(padded(dtype, in, group));
        matrix.group = dtype == hasten::Dtype::int4 ? group : 0;
        matrix.panels = static_cast<int32_t>(round_up(out, 16) / 16);
        matrix.data = data.data();
        matrix.panel_bytes = matrix.padded_in * bits(dtype) * 2;
        matrix.scales = dtype == hasten::Dtype::int8 ? scales.data() : nullptr;
        matrix.group_scales = dtype == hasten::Dtype::int4 ? group_scales.data() : nullptr;
        matrix.bases = bases.data();
        matrix.exceptions = exceptions.data();
        matrix.num_exceptions = num_exceptions.data();
        matrix.max_exceptions = kMostExceptions;
    }
    static constexpr int kMostExceptions = 40;

    // Where a coded weight lies: the byte of its sign and fraction, the byte of its code, and the place of the code there.
    struct Place {
        int64_t rest, code;
        int shift;
    };
    Place place(int64_t o, int64_t k) const {
        const int64_t unit = o / 16 * matrix.panel_bytes + k / 8 * 192, line = k % 8 / 2;
        const int64_t byte = o % 16 / 4 * 16 + line % 2 * 8 + o % 4 * 2 + k % 2;
        return {unit + line / 2 * 64 + byte, unit + 128 + byte, line < 2 ? 0 : 4};
    }
    static int64_t base_at(int64_t o) { return o / 16 * 64 + o % 16 / 4 * 16 + o % 4 * 2; }
    const hasten::Exception* exception(int64_t o, int64_t k) const {
        const hasten::Exception* list = matrix.exceptions + o / 16 * matrix.max_exceptions;
        for (int i = 0; i < matrix.num_exceptions[o / 16]; ++i) {
            if (list[i].lane == o % 16 && list[i].input == k) return list + i;
        }
        return nullptr;
    }
    float coded(int64_t o, int64_t k) const {
        if (const hasten::Exception* found = exception(o, k)) return from_bf16(found->bits);
        const Place at = place(o, k);
        const int rest = matrix.data[at.rest], code = matrix.data[at.code] >> at.shift & 15;
        const int exponent = code == 0 ? 0 : matrix.bases[base_at(o)] + code;
        return from_bf16(static_cast<uint16_t>((rest & 0x80) << 8 | exponent << 7 | (rest & 0x7f)));
    }

    // Weight (o, k) before its scale: a value, or a level with the zero point taken off.
    float level(int64_t o, int64_t k) const {
        const uint8_t* panel = matrix.data + o / 16 * matrix.panel_bytes;
        const int64_t column = o % 16;
        float wide;
        uint16_t half;
        switch (matrix.dtype) {
            case hasten::Dtype::f32:
                std::memcpy(&wide, panel + (k * 16 + column) * 4, 4);
                return wide;
            case hasten::Dtype::f16:
                std::memcpy(&half, panel + (k * 16 + column) * 2, 2);
                return from_f16(half);
            case hasten::Dtype::bf16:
                std::memcpy(&half, panel + ((k / 2 * 16 + column) * 2 + k % 2) * 2, 2);
                return from_bf16(half);
            case hasten::Dtype::bf16_coded:
                return coded(o, k);
            case hasten::Dtype::int8:
                return static_cast<float>(panel[(k / 4 * 16 + column) * 4 + k % 4]) - 128.0f;
            default:
                break;
        }
        const uint8_t byte = panel[(k / 8 * 16 + column) * 4 + k % 4];
        return static_cast<float>(k % 8 < 4 ? byte & 15 : byte >> 4) - 8.0f;
    }
    float scale(int64_t o, int64_t k) const {
        if (matrix.dtype == hasten::Dtype::int8) return matrix.scales[o];
        if (matrix.dtype != hasten::Dtype::int4) return 1.0f;
        return from_bf16(matrix.group_scales[(o / 16 * matrix.groups() + k / matrix.group) * 16 + o % 16]);
    }
};

}  // namespace check
