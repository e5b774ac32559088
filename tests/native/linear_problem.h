// Random matrix products with all of their operands, and the sums that the contract fixes.
#pragma once

#include "packed.h"

namespace check {

using hasten::Activation;
using hasten::Dtype;

struct Case {
    Dtype dtype;
    bool quantized;  // the activations
    int out, in, rows;
    bool bias, add, gated;
    Activation activation;

    int width() const { return gated ? out / 2 : out; }
    int64_t out_stride() const { return round_up(width(), 16); }
};

struct Weighting {
    Dtype dtype;
    bool quantized;
};
constexpr Weighting kWeightings[] = {{Dtype::f32, false}, {Dtype::bf16, false}, {Dtype::f16, false}, {Dtype::int8, false},
                                     {Dtype::int8, true}, {Dtype::int4, false}, {Dtype::int4, true}, {Dtype::bf16_coded, false}};

inline Case random_case(Random& random, Weighting weighting) {
    Case c{};
    c.dtype = weighting.dtype;
    c.quantized = weighting.quantized;
    c.gated = random.integer(0, 3) == 0;
    c.out = c.gated ? 32 * random.integer(1, 4) : random.integer(1, 150);
    c.in = random.integer(1, 300);
    c.rows = random.coin() ? random.integer(1, 9) : random.integer(9, 140);
    c.bias = random.coin();
    c.add = random.coin();
    c.activation = random.coin() ? Activation::none : static_cast<Activation>(random.integer(1, 3));
    return c;
}

// All operands of a case.
struct Operands {
    Case c;
    Packed weights;
    int64_t x_stride, q_stride;
    Buffer<float> x, scales, bias, out;
    Buffer<uint16_t> narrow;
    Buffer<float> levels;  // [out][in]
    Buffer<uint8_t> exceptional;
    Buffer<int8_t> q;
    Buffer<int32_t> sums;
    Buffer<uint8_t> scratch;

    Operands(const Case& of, Random& random)
        : c(of),
          weights(c.dtype, c.out, c.in),
          x_stride(round_up(c.in, 16)),
          q_stride(round_up(c.in, 64)),
          x(c.quantized ? 0 : c.rows * x_stride),
          scales(c.rows),
          bias(weights.matrix.panels * 16),
          out(c.rows * c.out_stride()),
          narrow(c.quantized ? 0 : c.rows * narrow_stride()),
          levels(int64_t{c.out} * c.in),
          exceptional(int64_t{c.out} * c.in),
          q(c.quantized ? c.rows * q_stride : 0),
          sums(c.rows),
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

    void read_weights() {
        for (int o = 0; o < c.out; ++o) {
            for (int k = 0; k < c.in; ++k) {
                levels[int64_t{o} * c.in + k] = weights.level(o, k);
                exceptional[int64_t{o} * c.in + k] = c.dtype == Dtype::bf16_coded && weights.exception(o, k) != nullptr;
            }
        }
    }
    float level(int o, int k) const { return levels[int64_t{o} * c.in + k]; }
    bool is_exceptional(int o, int k) const { return exceptional[int64_t{o} * c.in + k] != 0; }

    int64_t narrow_stride() const { return round_up(c.in, 32) + 32; }

    // Rows of zeros fill the last panel, columns of zeros the end of every row, as `pack` leaves them.
    void fill_weights(Random& random) {
        const hasten::Matrix& matrix = weights.matrix;
        for (int64_t i = 0; i < weights.bases.count() / 4; ++i) set_base(i, random.integer(50, 57));
        for (int64_t o = 0; o < matrix.panels * 16; ++o) {
            for (int64_t k = 0; k < matrix.padded_in; ++k) set_weight(o, k, o < c.out && k < c.in, random);
        }
        for (int64_t i = 0; i < weights.scales.count(); ++i) weights.scales[i] = i < c.out ? random.uniform(0.001f, 0.02f) : 0.0f;
    }

    void set_base(int64_t o, int base) {
        for (int i = 0; i < 4; ++i) {
            weights.bases[Packed::base_at(o) + i / 2 * 8 + i % 2] = static_cast<uint8_t>(base);
        }
    }

    // A number with a code, a zero (of either sign), a number too small for the lesser exponents, or an exception while there is
    // room.
    void set_coded(int64_t o, int64_t k, bool real, Random& random) {
        const Packed::Place at = weights.place(o, k);
        const int kind = real ? random.integer(0, 200) : 0, base = weights.bases[Packed::base_at(o)];
        const auto lower = static_cast<uint8_t>(real ? random.integer(0, 255) : 0);
        const int sign = real ? random.integer(0, 1) : 0;
        int32_t& count = weights.num_exceptions[o / 16];
        if (kind == 1 && count < Packed::kMostExceptions) {
            const auto bits = static_cast<uint16_t>(sign << 15 | random.integer(base - 10, base + 8) << 8 | lower);
            weights.exceptions[o / 16 * Packed::kMostExceptions + count++] = {static_cast<int32_t>(k),
                                                                              static_cast<uint16_t>(o % 16), bits};
            return;
        }
        weights.data[at.lower] = kind == 2 ? 0 : lower;
        const int code = kind == 0 || kind == 2 ? 0 : random.integer(1, 7);
        weights.data[at.four] = static_cast<uint8_t>(weights.data[at.four] | (sign * 8 + code) << at.shift);
    }

    void set_weight(int64_t o, int64_t k, bool real, Random& random) {
        const hasten::Matrix& matrix = weights.matrix;
        uint8_t* panel = matrix.data + o / 16 * matrix.panel_bytes;
        const float value = real ? random.normal() : 0.0f;
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
            case Dtype::bf16_coded:
                return set_coded(o, k, real, random);
            case Dtype::int8:
                panel[(k / 4 * 16 + o % 16) * 4 + k % 4] = static_cast<uint8_t>(real ? random.integer(0, 255) : 128);
                return;
            case Dtype::int4:
                break;
        }
        const Packed::Nibble at = weights.nibble(o, k);
        const int nibble = real ? random.integer(0, 15) : 8;
        if (k % 16 == 0) matrix.data[at.scale] = static_cast<uint8_t>(random.integer(-15, 15));
        matrix.data[at.byte] = static_cast<uint8_t>((matrix.data[at.byte] & 0xf0 >> at.shift) | nibble << at.shift);
    }

    void fill_activations(Random& random) {
        for (int r = 0; r < c.rows; ++r) {
            scales[r] = random.uniform(0.001f, 0.1f);
            for (int k = 0; k < c.in; ++k) {
                if (!c.quantized) {
                    x[r * x_stride + k] = random.normal();
                    narrow[r * narrow_stride() + k] = to_bf16(x[r * x_stride + k]);
                    continue;
                }
                const int8_t value = static_cast<int8_t>(random.integer(0, 9) == 0 ? 127 : random.integer(-127, 127));
                q[r * q_stride + k] = value;
                sums[r] += value;
            }
        }
    }

    hasten::LinearTask task(Buffer<float>& to) {
        hasten::LinearTask t{};
        t.matrix = &weights.matrix;
        t.rows = c.rows;
        if (c.quantized) {
            t.quantized = {q.data(), q_stride, scales.data(), sums.data()};
        } else {
            t.x = {x.data(), x_stride};
            if (hasten::is_bf16(c.dtype)) t.narrow = {narrow.data(), narrow_stride()};
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

    // Row r of the product with output feature o, by the operations that the contract fixes, one at a time.
    float sum(int r, int o) const {
        const float scale = (c.quantized ? scales[r] : 1.0f) * weights.scale(o);
        int64_t whole = 0;
        float chain = 0.0f;
        for (int k = 0; k < c.in; ++k) {
            if (c.quantized)
                whole += static_cast<int64_t>(level(o, k)) * q[r * q_stride + k];
            else if (!is_exceptional(o, k))
                chain = std::fmaf(level(o, k), x[r * x_stride + k], chain);
        }
        for (int k = 0; k < c.in && c.dtype == Dtype::bf16_coded; ++k) {
            if (is_exceptional(o, k)) chain = std::fmaf(level(o, k), x[r * x_stride + k], chain);
        }
        const float total = (c.quantized ? static_cast<float>(whole) : chain) * scale;
        return c.bias ? total + bias[o] : total;
    }
};

}  // namespace check
