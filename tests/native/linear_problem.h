// Random matrix products with their operands, and the sums that kernels.h documents.
#pragma once

#include <vector>

#include "packed_matrix.h"

namespace check {

using hasten::Activation;
using hasten::Dtype;

struct Case {
    Dtype dtype;
    bool quantized;  // the activations
    int out, in, rows;
    bool bias, add, gated;
    Activation activation;
    Groups groups = {};

    int width() const { return gated ? out / 2 : out; }
    int64_t out_stride() const { return round_up(width(), 16); }
};

struct WeightFormat {
    Dtype dtype;
    bool quantized;
};
constexpr WeightFormat kWeightFormats[] = {
    {Dtype::f32, false},    {Dtype::bf16, false},  {Dtype::f16, false},    {Dtype::int8, false},
    {Dtype::int8, true},    {Dtype::int4, false},  {Dtype::int4, true},    {Dtype::bf16_compressed, false},
    {Dtype::codes4, false}, {Dtype::codes4, true}, {Dtype::codes8, false}, {Dtype::codes8, true},
    {Dtype::fp8, false}};

inline Groups random_groups(Random& random, Dtype dtype) {
    if (!hasten::is_grouped(dtype)) return {};
    const bool has_codes = hasten::is_coded(dtype);
    return {16 << random.integer(0, 3), has_codes && random.coin(), has_codes && random.coin()};
}

inline Case random_case(Random& random, WeightFormat format) {
    Case c{};
    c.dtype = format.dtype;
    c.quantized = format.quantized;
    c.groups = random_groups(random, format.dtype);
    c.gated = random.integer(0, 3) == 0;
    c.out = c.gated ? 32 * random.integer(1, 4) : random.integer(1, 150);
    c.in = random.integer(1, 300);
    c.rows = random.coin() ? random.integer(1, 9) : random.integer(9, 140);
    c.bias = random.coin();
    c.add = random.coin();
    c.activation = random.coin() ? Activation::none : static_cast<Activation>(random.integer(1, 3));
    return c;
}

// The operands of a case.
struct Operands {
    Case c;
    PackedMatrix weights;
    int64_t x_stride, q_stride;
    Buffer<float> x, scales, bias, out;
    Buffer<uint16_t> x_bf16;
    Buffer<float> levels;  // [out][in]
    Buffer<uint8_t> outlier_mask;
    Buffer<int8_t> q;
    Buffer<int32_t> sums;
    Buffer<uint8_t> int16_data;
    Buffer<float> int16_scales;
    Buffer<int32_t> int16_sums;
    Buffer<uint8_t> scratch;

    Operands(const Case& linear_case, Random& random)
        : c(linear_case),
          weights(c.dtype, c.out, c.in, c.groups),
          x_stride(round_up(c.in, 16)),
          q_stride(round_up(c.in, 64)),
          x(c.quantized ? 0 : c.rows * x_stride),
          scales(c.rows),
          bias(weights.matrix.panels * 16),
          out(c.rows * c.out_stride()),
          x_bf16(c.quantized ? 0 : c.rows * bf16_stride()),
          levels(int64_t{c.out} * c.in),
          outlier_mask(int64_t{c.out} * c.in),
          q(c.quantized ? c.rows * q_stride : 0),
          sums(c.rows),
          int16_data(has_int16_inputs() ? c.rows * int16_blocks() * 256 : 0),
          int16_scales(has_int16_inputs() ? c.rows * int16_blocks() : 0),
          int16_sums(has_int16_inputs() ? c.rows * int16_blocks() * 8 : 0),
          scratch(hasten::kLinearScratch) {
        fill_weights(random);
        read_weights();
        fill_activations(random);
        for (int o = 0; o < c.out && c.bias; ++o) bias[o] = random.normal();
        for (int r = 0; r < c.rows; ++r) {
            for (int64_t o = 0; o < c.out_stride(); ++o) {
                out[r * c.out_stride() + o] = o < c.width() || !c.add ? random.normal() : 0.0f;
            }
        }
    }

    // Gives row 0 and output 0 the largest sum that c.in products can have.
    void set_largest_sum() {
        sums[0] = 127 * c.in;
        for (int k = 0; k < c.in; ++k) {
            q[k] = 127;
            if (c.dtype == Dtype::int8) weights.matrix.data[k / 4 * 64 + k % 4] = 255;
            if (c.dtype == Dtype::int4) weights.set_extreme_weight(k);
            if (hasten::is_grouped(c.dtype)) weights.matrix.data[weights.group_position(0, k).byte] = 255;
        }
        read_weights();
    }
    void read_weights() {
        for (int o = 0; o < c.out; ++o) {
            for (int k = 0; k < c.in; ++k) {
                levels[int64_t{o} * c.in + k] = weights.level(o, k);
                outlier_mask[int64_t{o} * c.in + k] = c.dtype == Dtype::bf16_compressed && weights.outlier(o, k) != nullptr;
            }
        }
    }
    float level(int o, int k) const { return levels[int64_t{o} * c.in + k]; }
    bool is_outlier(int o, int k) const { return outlier_mask[int64_t{o} * c.in + k] != 0; }

    bool has_int16_inputs() const { return hasten::is_coded(c.dtype) && !c.quantized; }
    int64_t int16_blocks() const { return round_up(c.in, 128) / 128; }
    int64_t bf16_stride() const { return round_up(c.in, 32) + 32; }

    // Zero rows pad the last panel and zero columns pad every row, as after packing.
    void fill_weights(Random& random) {
        const hasten::Matrix& matrix = weights.matrix;
        for (int64_t i = 0; i < weights.exponent_bases.count() / 4; ++i) set_exponent_base(i, random.integer(50, 57));
        for (int64_t o = 0; o < matrix.panels * 16; ++o) {
            for (int64_t k = 0; k < matrix.padded_in; ++k) set_weight(o, k, o < c.out && k < c.in, random);
        }
        for (int64_t i = 0; i < weights.scales.count(); ++i) weights.scales[i] = i < c.out ? random.uniform(0.001f, 0.02f) : 0.0f;
    }

    void set_exponent_base(int64_t o, int base) {
        for (int i = 0; i < 4; ++i) {
            weights.exponent_bases[PackedMatrix::exponent_base_index(o) + i / 2 * 8 + i % 2] = static_cast<uint8_t>(base);
        }
    }

    // A weight with a code, a zero of either sign, a weight too small for the exponent base, or an outlier while the list has room.
    void set_bf16_compressed(int64_t o, int64_t k, bool in_matrix, Random& random) {
        const PackedMatrix::CompressedPosition at = weights.compressed_position(o, k);
        const int kind = in_matrix ? random.integer(0, 200) : 0,
                  base = weights.exponent_bases[PackedMatrix::exponent_base_index(o)];
        const auto low_byte = static_cast<uint8_t>(in_matrix ? random.integer(0, 255) : 0);
        const int sign = in_matrix ? random.integer(0, 1) : 0;
        int32_t& count = weights.num_outliers[o / 16];
        if (kind == 1 && count < PackedMatrix::kMaxOutliers) {
            const auto bits = static_cast<uint16_t>(sign << 15 | random.integer(base - 10, base + 8) << 8 | low_byte);
            weights.outliers[o / 16 * PackedMatrix::kMaxOutliers + count++] = {static_cast<int32_t>(k),
                                                                               static_cast<uint16_t>(o % 16), bits};
            return;
        }
        weights.data[at.low_byte] = kind == 2 ? 0 : low_byte;
        const int code = kind == 0 || kind == 2 ? 0 : random.integer(1, 7);
        weights.data[at.nibble_byte] = static_cast<uint8_t>(weights.data[at.nibble_byte] | (sign * 8 + code) << at.shift);
    }

    // The scale (value 0) or the offset (value 1) of a weight.
    void set_group_value(int64_t o, int64_t k, int value, float number, Random& random) {
        uint8_t* data = weights.matrix.data;
        const int64_t block = weights.group_position(o, k).block;
        if (!c.groups.is_nested) {
            std::memcpy(data + block + 64 * value + 4 * (o % 16), &number, 4);
            return;
        }
        const uint16_t half = to_f16(number / 64.0f);
        if (k % 256 == 0) std::memcpy(data + block + 32 * value + 2 * (o % 16), &half, 2);
        data[weights.nested_byte(o, k, value)] = static_cast<uint8_t>(random.integer(-128, 127));
    }
    void set_grouped(int64_t o, int64_t k, bool in_matrix, Random& random) {
        const PackedMatrix::GroupPosition at = weights.group_position(o, k);
        uint8_t* data = weights.matrix.data;
        const bool has_codes = hasten::is_coded(c.dtype);
        const float scale = o < c.out ? random.uniform(0.001f, 0.02f) * (has_codes ? 1.0f : 0x1p60f) : 0.0f;
        const float offset = o < c.out ? 0.1f * random.normal() : 0.0f;
        if (k % c.groups.inputs == 0) set_group_value(o, k, 0, scale, random);
        if (k % c.groups.inputs == 0 && c.groups.has_offsets) set_group_value(o, k, 1, offset, random);
        const int code = !in_matrix ? 0 : c.dtype == Dtype::codes4 ? random.integer(0, 15) : random.integer(0, 255);
        const bool is_nan = c.dtype == Dtype::fp8 && (code & 127) == 127;
        data[at.byte] = static_cast<uint8_t>((at.shift == 0 ? 0 : data[at.byte]) | (is_nan ? 0 : code) << at.shift);
    }

    void set_weight(int64_t o, int64_t k, bool in_matrix, Random& random) {
        if (hasten::is_grouped(c.dtype)) return set_grouped(o, k, in_matrix, random);
        const hasten::Matrix& matrix = weights.matrix;
        uint8_t* panel = matrix.data + o / 16 * matrix.panel_bytes;
        const float value = in_matrix ? random.normal() : 0.0f;
        const uint16_t half = matrix.dtype == Dtype::f16 ? to_f16(value) : to_bf16(value);
        switch (matrix.dtype) {
            case Dtype::f32:
                std::memcpy(panel + (k * 16 + o % 16) * 4, &value, 4);
                return;
            case Dtype::f16:
                std::memcpy(panel + (k * 16 + o % 16) * 2, &half, 2);
                return;
            case Dtype::bf16:
                std::memcpy(panel + ((k / 2 * 16 + o % 16) * 2 + k % 2) * 2, &half, 2);
                return;
            case Dtype::bf16_compressed:
                return set_bf16_compressed(o, k, in_matrix, random);
            case Dtype::int8:
                panel[(k / 4 * 16 + o % 16) * 4 + k % 4] = static_cast<uint8_t>(in_matrix ? random.integer(0, 255) : 128);
                return;
            default:
                break;
        }
        const PackedMatrix::NibblePosition at = weights.nibble_position(o, k);
        const int nibble = in_matrix ? random.integer(0, 15) : 8;
        if (k % 16 == 0) matrix.data[at.scale] = static_cast<uint8_t>(random.integer(-15, 15));
        matrix.data[at.byte] = static_cast<uint8_t>((matrix.data[at.byte] & 0xf0 >> at.shift) | nibble << at.shift);
    }

    void fill_activations(Random& random) {
        for (int r = 0; r < c.rows; ++r) {
            scales[r] = random.uniform(0.001f, 0.1f);
            for (int k = 0; k < c.in; ++k) {
                if (!c.quantized) {
                    x[r * x_stride + k] = random.normal();
                    x_bf16[r * bf16_stride() + k] = to_bf16(x[r * x_stride + k]);
                    continue;
                }
                const int8_t value = static_cast<int8_t>(random.integer(0, 9) == 0 ? 127 : random.integer(-127, 127));
                q[r * q_stride + k] = value;
                sums[r] += value;
            }
        }
    }

    hasten::LinearTask task(const hasten::Kernels& kernels, Buffer<float>& to) {
        hasten::LinearTask t{};
        t.matrix = &weights.matrix;
        t.rows = c.rows;
        if (c.quantized) {
            t.quantized = {q.data(), q_stride, scales.data(), sums.data()};
        } else {
            t.x = {x.data(), x_stride};
            if (has_int16_inputs()) {
                t.x_int16 = {int16_data.data(), int16_blocks() * 256, int16_scales.data(), int16_sums.data(), int16_blocks()};
                kernels.convert_to_int16({t.x, c.in, t.x_int16, 0, c.rows});
            }
            if (hasten::is_bf16(c.dtype)) t.x_bf16 = {x_bf16.data(), bf16_stride()};
        }
        t.bias = c.bias ? bias.data() : nullptr;
        t.out = {to.data(), c.out_stride()};
        t.add = c.add;
        t.gated = c.gated;
        t.activation = c.activation;
        t.panel_end = c.gated ? weights.matrix.panels / 2 : weights.matrix.panels;
        t.scratch = scratch.data();
        return t;
    }

    // Activations of 16 bits and their scales, one for each 128 inputs.
    struct Int16Row {
        std::vector<int64_t> q;
        std::vector<float> scales;
    };
    Int16Row int16_row(int r) const {
        Int16Row row;
        for (int begin = 0; begin < c.in; begin += 128) {
            float absmax = 0.0f;
            for (int k = begin; k < c.in && k < begin + 128; ++k) absmax = std::fmax(absmax, std::fabs(x[r * x_stride + k]));
            row.scales.push_back(absmax <= 1e-30f ? 0.0f : absmax / 32512.0f);
            const float inverse = absmax <= 1e-30f ? 0.0f : 32512.0f / absmax;
            for (int k = begin; k < c.in && k < begin + 128; ++k)
                row.q.push_back(static_cast<int64_t>(std::nearbyint(x[r * x_stride + k] * inverse)));
        }
        return row;
    }
    float codes_int16_sum(const Int16Row& row, int o) const {
        float total = 0.0f;
        for (int begin = 0; begin < c.in; begin += c.groups.inputs) {
            int64_t products = 0, activations = 0;
            for (int k = begin; k < c.in && k < begin + c.groups.inputs; ++k) {
                products += int64_t{weights.code(o, k) - weights.zero()} * row.q[static_cast<size_t>(k)];
                activations += row.q[static_cast<size_t>(k)];
            }
            const float scale = row.scales[static_cast<size_t>(begin / 128)];
            total = std::fmaf(weights.group_scale(o, begin) * scale, static_cast<float>(products), total);
            if (c.groups.has_offsets)
                total = std::fmaf(weights.group_offset(o, begin) * scale, static_cast<float>(activations), total);
        }
        return total;
    }

    float fp8_sum(int r, int o) const {
        float total = 0.0f;
        for (int begin = 0; begin < c.in; begin += c.groups.inputs) {
            const float scale = weights.group_scale(o, begin);
            float sum = 0.0f;
            for (int k = begin; k < c.in && k < begin + c.groups.inputs; ++k)
                sum = std::fmaf(weights.fp8_number(o, k), x[r * x_stride + k], sum);
            total = std::fmaf(scale, sum, total);
        }
        return total;
    }

    // A product of integer codes in groups with int8 activations.
    float codes_int8_sum(int r, int o) const {
        float total = 0.0f;
        for (int begin = 0; begin < c.in; begin += c.groups.inputs) {
            int64_t products = 0, activations = 0;
            for (int k = begin; k < c.in && k < begin + c.groups.inputs; ++k) {
                products += int64_t{weights.code(o, k) - weights.zero()} * q[r * q_stride + k];
                activations += q[r * q_stride + k];
            }
            total = std::fmaf(weights.group_scale(o, begin), static_cast<float>(products), total);
            if (c.groups.has_offsets) total = std::fmaf(weights.group_offset(o, begin), static_cast<float>(activations), total);
        }
        return total * scales[r];
    }

    // Row r of the product with output feature o, by the documented operations one at a time.
    float sum(int r, int o) const {
        if (hasten::is_grouped(c.dtype)) {
            const float product = c.dtype == Dtype::fp8 ? fp8_sum(r, o)
                                  : c.quantized         ? codes_int8_sum(r, o)
                                                        : codes_int16_sum(int16_row(r), o);
            return c.bias ? product + bias[o] : product;
        }
        const float scale = (c.quantized ? scales[r] : 1.0f) * weights.scale(o);
        int64_t int_sum = 0;
        float float_sum = 0.0f;
        for (int k = 0; k < c.in; ++k) {
            if (c.quantized)
                int_sum += static_cast<int64_t>(level(o, k)) * q[r * q_stride + k];
            else if (!is_outlier(o, k))
                float_sum = std::fmaf(level(o, k), x[r * x_stride + k], float_sum);
        }
        for (int k = 0; k < c.in && c.dtype == Dtype::bf16_compressed; ++k) {
            if (is_outlier(o, k)) float_sum = std::fmaf(level(o, k), x[r * x_stride + k], float_sum);
        }
        const float total = (c.quantized ? static_cast<float>(int_sum) : float_sum) * scale;
        return c.bias ? total + bias[o] : total;
    }
};

}  // namespace check
