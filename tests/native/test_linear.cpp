// Matrix products: every weight type, form and epilogue against scalar loops, bit by bit before the activation.
#include "packed.h"

using check::Buffer;
using check::Packed;
using check::Random;
using hasten::Activation;
using hasten::Dtype;

namespace {

struct Case {
    Dtype dtype;
    bool quantized;  // the activations
    int out, in, group, rows;
    bool bias, add, gated;
    Activation activation;

    int width() const { return gated ? out / 2 : out; }
    int64_t out_stride() const { return check::round_up(width(), 16); }
};

struct Weighting {
    Dtype dtype;
    bool quantized;
};
constexpr Weighting kWeightings[] = {{Dtype::f32, false}, {Dtype::bf16, false}, {Dtype::f16, false}, {Dtype::int8, false},
                                     {Dtype::int8, true}, {Dtype::int4, false}, {Dtype::int4, true}};

Case random_case(Random& random, Weighting weighting) {
    Case c{};
    c.dtype = weighting.dtype;
    c.quantized = weighting.quantized;
    c.gated = random.integer(0, 3) == 0;
    c.out = c.gated ? 32 * random.integer(1, 4) : random.integer(1, 150);
    c.in = random.integer(1, 300);
    c.group = 32 << random.integer(0, 2);
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
    int64_t x_stride, q_stride, runs;
    Buffer<float> x, scales, bias, out;
    Buffer<int8_t> q;
    Buffer<int32_t> sums;
    Buffer<uint8_t> scratch;

    Operands(const Case& of, Random& random)
        : c(of),
          weights(c.dtype, c.out, c.in, c.group),
          x_stride(check::round_up(c.in, 16)),
          q_stride(check::round_up(c.in, 64)),
          runs(c.dtype == Dtype::int4 ? (q_stride + c.group - 1) / c.group : 1),
          x(c.quantized ? 0 : c.rows * x_stride),
          scales(c.rows),
          bias(weights.matrix.panels * 16),
          out(c.rows * c.out_stride()),
          q(c.quantized ? c.rows * q_stride : 0),
          sums(c.rows * runs),
          scratch(hasten::kLinearScratch) {
        fill_weights(random);
        fill_activations(random);
        for (int o = 0; o < c.out && c.bias; ++o) bias[o] = random.normal();
        for (int r = 0; r < c.rows; ++r) {
            for (int64_t o = 0; o < c.out_stride(); ++o) {
                out[r * c.out_stride() + o] = o < c.width() || !c.add ? random.normal() : 0.0f;
            }
        }
    }

    // Rows of zeros fill the last panel, columns of zeros the end of every row, as `pack` leaves them.
    void fill_weights(Random& random) {
        const hasten::Matrix& matrix = weights.matrix;
        for (int64_t o = 0; o < matrix.panels * 16; ++o) {
            for (int64_t k = 0; k < matrix.padded_in; ++k) set_weight(o, k, o < c.out && k < c.in, random);
        }
        for (int64_t i = 0; i < weights.scales.count(); ++i) weights.scales[i] = i < c.out ? random.uniform(0.001f, 0.02f) : 0.0f;
        for (int64_t i = 0; i < weights.group_scales.count(); ++i) {
            weights.group_scales[i] = check::to_bf16(random.uniform(-0.05f, 0.05f));
        }
    }

    void set_weight(int64_t o, int64_t k, bool real, Random& random) {
        const hasten::Matrix& matrix = weights.matrix;
        uint8_t* panel = matrix.data + o / 16 * matrix.panel_bytes;
        const float value = real ? random.normal() : 0.0f;
        const uint16_t half = matrix.dtype == Dtype::f16 ? check::to_f16(value) : check::to_bf16(value);
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
            case Dtype::int8:
                panel[(k / 4 * 16 + o % 16) * 4 + k % 4] = static_cast<uint8_t>(real ? random.integer(0, 255) : 128);
                return;
            case Dtype::int4:
                break;
        }
        uint8_t& byte = panel[(k / 8 * 16 + o % 16) * 4 + k % 4];
        const int nibble = real ? random.integer(0, 15) : 8;
        byte = static_cast<uint8_t>(k % 8 < 4 ? (byte & 0xf0) | nibble : (byte & 0x0f) | nibble << 4);
    }

    void fill_activations(Random& random) {
        for (int r = 0; r < c.rows; ++r) {
            scales[r] = random.uniform(0.001f, 0.1f);
            for (int k = 0; k < c.in; ++k) {
                if (!c.quantized) {
                    x[r * x_stride + k] = random.normal();
                    continue;
                }
                const int8_t value = static_cast<int8_t>(random.integer(0, 9) == 0 ? 127 : random.integer(-127, 127));
                q[r * q_stride + k] = value;
                sums[r * runs + (runs > 1 ? k / c.group : 0)] += value;
            }
        }
    }

    hasten::LinearTask task(Buffer<float>& to) {
        hasten::LinearTask t{};
        t.matrix = &weights.matrix;
        t.rows = c.rows;
        if (c.quantized) {
            const int64_t run = c.dtype == Dtype::int4 ? c.group : q_stride;
            t.quantized = {q.data(), q_stride, scales.data(), sums.data(), runs, static_cast<int32_t>(run)};
        } else {
            t.x = {x.data(), x_stride};
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
        float total = 0.0f, scale = c.quantized ? scales[r] : 1.0f;
        if (c.dtype == Dtype::int8) scale *= weights.scale(o, 0);
        const int group = c.dtype == Dtype::int4 ? c.group : c.in;
        for (int begin = 0; begin < c.in; begin += group) {
            const int end = begin + group < c.in ? begin + group : c.in;
            int64_t whole = 0;
            float chain = 0.0f;
            for (int k = begin; k < end; ++k) {
                if (c.quantized)
                    whole += static_cast<int64_t>(weights.level(o, k)) * q[r * q_stride + k];
                else
                    chain = std::fmaf(weights.level(o, k), x[r * x_stride + k], chain);
            }
            if (c.quantized) chain = static_cast<float>(whole);
            total = c.dtype == Dtype::int4 ? std::fmaf(chain, weights.scale(o, begin), total) : chain;
        }
        total *= scale;
        return c.bias ? total + bias[o] : total;
    }
};

double activated(Activation kind, double x) {
    switch (kind) {
        case Activation::silu:
            return x / (1.0 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
        case Activation::gelu_tanh:
            return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
        default:
            return x;
    }
}

// The tiles of AMX round float activations to bf16 and sum in an order of their own.
bool rounds_activations(const hasten::Kernels& kernels, const Case& c) {
    return std::strcmp(kernels.name, "amx") == 0 && c.dtype == Dtype::bf16;
}

void check_rounded(const Operands& operands, const Buffer<float>& got) {
    const Case& c = operands.c;
    for (int r = 0; r < c.rows; ++r) {
        for (int o = 0; o < c.width(); ++o) {
            double want = 0.0, size = 1.0;
            for (int k = 0; k < c.in; ++k) {
                const float x = operands.x[r * operands.x_stride + k];
                const double product = operands.weights.level(o, k) * double{c.rows > 8 ? check::from_bf16(check::to_bf16(x)) : x};
                want += product;
                size += std::fabs(product);
            }
            if (c.bias) want += operands.bias[o];
            if (c.add) want += operands.out[r * c.out_stride() + o];
            CHECK_CLOSE(got[r * c.out_stride() + o] / size, want / size, 1e-6);
        }
    }
}

void copy(Buffer<float>& to, const Buffer<float>& from) { std::memcpy(to.data(), from.data(), from.bytes()); }

void check_against_reference(const Operands& operands, const Buffer<float>& got) {
    const Case& c = operands.c;
    const bool exact = c.activation == Activation::none && !c.gated;
    for (int r = 0; r < c.rows; ++r) {
        for (int o = 0; o < c.out_stride(); ++o) {
            const int64_t at = r * c.out_stride() + o;
            if (o >= c.width()) {
                CHECK_CLOSE(got[at], 0.0, 0.0);
                continue;
            }
            const float sum = operands.sum(r, o);
            if (exact) {
                CHECK_CLOSE(got[at], c.add ? operands.out[at] + sum : sum, 0.0);
                continue;
            }
            // 1 + erf(x) cancels for negative x: the error is relative to x.
            const double partner = c.gated ? operands.sum(r, o + c.width()) : 1.0;
            const double want = activated(c.activation, sum) * partner + (c.add ? operands.out[at] : 0.0);
            CHECK_CLOSE(got[at], want, 1e-6, std::fmax(0.1, std::fabs(sum * partner)));
        }
    }
}

}  // namespace

TEST(linear_is_the_documented_sum_with_every_epilogue) {
    Random random(1);
    for (const Weighting weighting : kWeightings) {
        for (int i = 0; i < 40; ++i) {
            Operands operands(random_case(random, weighting), random);
            Buffer<float> got(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(got, operands.out);
                kernels.linear(operands.task(got));
                if (!rounds_activations(kernels, operands.c)) return check_against_reference(operands, got);
                if (operands.c.activation == Activation::none && !operands.c.gated) check_rounded(operands, got);
            });
        }
    }
}

// The result is close to the plain product in double, whatever the order of the sums.
TEST(linear_is_the_product_in_double) {
    Random random(2);
    for (const Weighting weighting : kWeightings) {
        Case c{weighting.dtype, weighting.quantized, 40, 1500, 64, 11, false, false, false, Activation::none};
        Operands operands(c, random);
        Buffer<float> got(operands.out.count());
        check::for_each_isa([&](const hasten::Kernels& kernels) {
            kernels.linear(operands.task(got));
            for (int r = 0; r < c.rows; ++r) {
                for (int o = 0; o < c.out; ++o) {
                    double want = 0.0, size = 0.0;
                    for (int k = 0; k < c.in; ++k) {
                        const double x = c.quantized ? operands.scales[r] * double{operands.q[r * operands.q_stride + k] * 1.0}
                                                     : operands.x[r * operands.x_stride + k];
                        const double product = x * operands.weights.level(o, k) * operands.weights.scale(o, k);
                        want += product;
                        size += std::fabs(product);
                    }
                    CHECK_CLOSE(got[r * c.out_stride() + o] / size, want / size, rounds_activations(kernels, c) ? 1e-3 : 3e-6);
                }
            }
        });
    }
}

TEST(linear_rows_do_not_depend_on_their_batch_nor_on_the_cut_of_panels) {
    Random random(3);
    for (const Weighting weighting : kWeightings) {
        for (int i = 0; i < 12; ++i) {
            Operands operands(random_case(random, weighting), random);
            const Case& c = operands.c;
            Buffer<float> whole(operands.out.count()), parts(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(whole, operands.out);
                copy(parts, operands.out);
                kernels.linear(operands.task(whole));
                const hasten::LinearTask all = operands.task(parts);
                for (int row = 0; row < c.rows;) {
                    const int most = rounds_activations(kernels, c) ? c.rows : c.rows - row < 20 ? c.rows - row : 20;
                    const int rows = most == c.rows ? most : random.integer(1, most);
                    for (int panel = 0; panel < all.panel_end;) {
                        hasten::LinearTask part = all;
                        part.panel_begin = panel;
                        part.panel_end = panel = random.integer(panel + 1, all.panel_end);
                        part.rows = rows;
                        if (!c.quantized) part.x.data += row * part.x.stride;
                        part.out.data += row * part.out.stride;
                        if (c.quantized) part.quantized.data += row * part.quantized.stride;
                        if (c.quantized) part.quantized.scales += row;
                        if (c.quantized) part.quantized.sums += row * part.quantized.sums_stride;
                        kernels.linear(part);
                    }
                    row += rows;
                }
                CHECK(whole.same(parts));
            });
        }
    }
}

TEST(linear_has_the_same_bits_on_every_instruction_set) {
    Random random(4);
    for (const Weighting weighting : kWeightings) {
        for (int i = 0; i < 20; ++i) {
            Operands operands(random_case(random, weighting), random);
            Buffer<float> first(operands.out.count()), other(operands.out.count());
            copy(first, operands.out);
            check::isa(0)->linear(operands.task(first));
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(other, operands.out);
                kernels.linear(operands.task(other));
                CHECK(first.same(other) || rounds_activations(kernels, operands.c));
            });
        }
    }
}

// Long rows: more than one stretch of scratch, and integer sums near the end of their range.
TEST(linear_takes_long_rows) {
    Random random(5);
    for (const Weighting weighting : kWeightings) {
        for (int rows = 1; rows <= 65; rows += 32) {
            Case c{weighting.dtype, weighting.quantized, 17, 19000, 128, rows, true, false, false, Activation::none};
            Operands operands(c, random);
            if (c.quantized) {  // the greatest sum there is, in row 0 with output 0
                for (int64_t run = 0; run < operands.runs; ++run) operands.sums[run] = 0;
                for (int k = 0; k < c.in; ++k) {
                    operands.q[k] = 127;
                    operands.sums[operands.runs > 1 ? k / c.group : 0] += 127;
                    if (c.dtype == Dtype::int8) operands.weights.matrix.data[k / 4 * 64 + k % 4] = 255;
                }
            }
            Buffer<float> got(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                kernels.linear(operands.task(got));
                rounds_activations(kernels, c) ? check_rounded(operands, got) : check_against_reference(operands, got);
            });
        }
    }
}
