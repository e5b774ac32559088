// A packed matrix with its memory, and a scalar reading of the layouts that kernels.h documents.
#pragma once

#include "check.h"

namespace check {

struct Packed {
    hasten::Matrix matrix;
    Buffer<uint8_t> data;
    Buffer<float> scales;
    Buffer<uint8_t> bases;
    Buffer<hasten::Exception> exceptions;
    Buffer<int32_t> num_exceptions;

    static int64_t padded(hasten::Dtype dtype, int in) {
        switch (dtype) {
            case hasten::Dtype::f32:
            case hasten::Dtype::f16:
                return in;
            case hasten::Dtype::bf16:
            case hasten::Dtype::bf16_coded:
                return round_up(in, 32);
            default:
                return round_up(in, 64);
        }
    }
    // Of a weight, times two: int4 takes half a bit for its share of a scale.
    static int64_t half_bits(hasten::Dtype dtype) {
        switch (dtype) {
            case hasten::Dtype::f32:
                return 64;
            case hasten::Dtype::bf16:
            case hasten::Dtype::f16:
                return 32;
            case hasten::Dtype::bf16_coded:
                return 24;
            case hasten::Dtype::int8:
                return 16;
            default:
                return 9;
        }
    }

    Packed(hasten::Dtype dtype, int out, int in)
        : matrix{},
          data(round_up(out, 16) * padded(dtype, in) * half_bits(dtype) / 16),
          scales(is_scaled(dtype) ? round_up(out, 16) : 0),
          bases(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) * 4 : 0),
          exceptions(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) / 16 * kMostExceptions : 0),
          num_exceptions(dtype == hasten::Dtype::bf16_coded ? round_up(out, 16) / 16 : 0) {
        matrix.dtype = dtype;
        matrix.out_features = out;
        matrix.in_features = in;
        matrix.padded_in = static_cast<int32_t>(padded(dtype, in));
        matrix.panels = static_cast<int32_t>(round_up(out, 16) / 16);
        matrix.data = data.data();
        matrix.panel_bytes = matrix.padded_in * half_bits(dtype);
        matrix.scales = is_scaled(dtype) ? scales.data() : nullptr;
        matrix.bases = bases.data();
        matrix.exceptions = exceptions.data();
        matrix.num_exceptions = num_exceptions.data();
        matrix.max_exceptions = kMostExceptions;
    }
    static constexpr int kMostExceptions = 40;
    static bool is_scaled(hasten::Dtype dtype) { return dtype == hasten::Dtype::int8 || dtype == hasten::Dtype::int4; }

    // Of an int4 weight: the byte of its group's scale, the byte of its nibble, and the place of the nibble there.
    struct Nibble {
        int64_t scale, byte;
        int shift;
    };
    Nibble nibble(int64_t o, int64_t k) const {
        const int64_t block = o / 16 * matrix.panel_bytes + k / 64 * 576, line = 1 + k % 64 / 8;
        return {block + k % 64 / 16 * 16 + o % 16, block + line * 64 + o % 16 * 4 + k % 4, k % 8 < 4 ? 0 : 4};
    }

    // Where a coded weight lies: its lower byte, the byte with the four bits of the upper one, and their place there.
    struct Place {
        int64_t lower, four;
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
        const int four = matrix.data[at.four] >> at.shift & 15, code = four % 8;
        const int upper = four / 8 * 128 + (code == 0 ? 0 : matrix.bases[base_at(o)] + code);
        return from_bf16(static_cast<uint16_t>(upper * 256 + matrix.data[at.lower]));
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
        const Nibble at = nibble(o, k);
        const int level = (matrix.data[at.byte] >> at.shift & 15) - 8;
        return static_cast<float>(static_cast<int8_t>(matrix.data[at.scale]) * level);
    }
    // The greatest weight there is, for output 0 and input k: -15 times -8.
    void set_greatest(int64_t k) {
        const Nibble at = nibble(0, k);
        matrix.data[at.scale] = static_cast<uint8_t>(-15);
        matrix.data[at.byte] = 0;
    }
    float scale(int64_t o) const { return is_scaled(matrix.dtype) ? matrix.scales[o] : 1.0f; }
};

}  // namespace check
