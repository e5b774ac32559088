// Matrix products: every weight type, form and epilogue against scalar loops, bit by bit before the activation.
#include "linear_problem.h"

using check::Buffer;
using check::Case;
using check::Operands;
using check::Random;
using check::random_case;
using check::Weighting;
using hasten::Activation;
using hasten::Dtype;

namespace {

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
    return std::strcmp(kernels.name, "amx") == 0 && hasten::is_bf16(c.dtype);
}

void check_rounded(const Operands& operands, const Buffer<float>& got) {
    const Case& c = operands.c;
    for (int r = 0; r < c.rows; ++r) {
        for (int o = 0; o < c.width(); ++o) {
            double want = 0.0, size = 1.0;
            for (int k = 0; k < c.in; ++k) {
                const float x = operands.x[r * operands.x_stride + k];
                const double product = operands.level(o, k) * double{c.rows > 8 ? check::from_bf16(check::to_bf16(x)) : x};
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
    for (const Weighting weighting : check::kWeightings) {
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
    for (const Weighting weighting : check::kWeightings) {
        Case c{weighting.dtype, weighting.quantized, 40, 1500, 11, false, false, false, Activation::none};
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
                        const double product = x * operands.level(o, k) * operands.weights.scale(o);
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
    for (const Weighting weighting : check::kWeightings) {
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
                        if (part.narrow.data != nullptr) part.narrow.data += row * part.narrow.stride;
                        part.out.data += row * part.out.stride;
                        if (c.quantized) part.quantized.data += row * part.quantized.stride;
                        if (c.quantized) part.quantized.scales += row;
                        if (c.quantized) part.quantized.sums += row;
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
    for (const Weighting weighting : check::kWeightings) {
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
    for (const Weighting weighting : check::kWeightings) {
        for (int rows = 1; rows <= 65; rows += 32) {
            Case c{weighting.dtype, weighting.quantized, 17, 19000, rows, true, false, false, Activation::none};
            Operands operands(c, random);
            if (c.quantized) {  // the greatest sum there is, in row 0 with output 0
                operands.sums[0] = 127 * c.in;
                for (int k = 0; k < c.in; ++k) {
                    operands.q[k] = 127;
                    if (c.dtype == Dtype::int8) operands.weights.matrix.data[k / 4 * 64 + k % 4] = 255;
                    if (c.dtype == Dtype::int4) operands.weights.set_greatest(k);
                }
                operands.read_weights();
            }
            Buffer<float> got(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                kernels.linear(operands.task(got));
                rounds_activations(kernels, c) ? check_rounded(operands, got) : check_against_reference(operands, got);
            });
        }
    }
}
