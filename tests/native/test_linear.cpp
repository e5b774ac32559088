// Matrix products: every weight type, form and epilogue against scalar loops, bit by bit before the activation.
#include <initializer_list>

#include "linear_problem.h"

using check::Buffer;
using check::Case;
using check::Operands;
using check::Random;
using check::random_case;
using check::WeightFormat;
using hasten::Activation;
using hasten::Dtype;

namespace {

double reference_activation(Activation kind, double x) {
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

// AMX tiles round float activations to bf16 and sum in their own order.
bool rounds_activations(const hasten::Kernels& kernels, const Case& c) {
    return std::strcmp(kernels.name, "amx") == 0 && hasten::is_bf16(c.dtype);
}

void check_rounded(const Operands& operands, const Buffer<float>& actual) {
    const Case& c = operands.c;
    for (int r = 0; r < c.rows; ++r) {
        for (int o = 0; o < c.width(); ++o) {
            double expected = 0.0, size = 1.0;
            for (int k = 0; k < c.in; ++k) {
                const float x = operands.x[r * operands.x_stride + k];
                const double product = operands.level(o, k) * double{c.rows > 8 ? check::from_bf16(check::to_bf16(x)) : x};
                expected += product;
                size += std::fabs(product);
            }
            if (c.bias) expected += operands.bias[o];
            if (c.add) expected += operands.out[r * c.out_stride() + o];
            CHECK_CLOSE(actual[r * c.out_stride() + o] / size, expected / size, 1e-6);
        }
    }
}

void copy(Buffer<float>& to, const Buffer<float>& from) { std::memcpy(to.data(), from.data(), from.bytes()); }

void check_against_reference(const Operands& operands, const Buffer<float>& actual) {
    const Case& c = operands.c;
    const bool exact = c.activation == Activation::none && !c.gated;
    for (int r = 0; r < c.rows; ++r) {
        for (int o = 0; o < c.out_stride(); ++o) {
            const int64_t at = r * c.out_stride() + o;
            if (o >= c.width()) {
                CHECK_CLOSE(actual[at], 0.0, 0.0);
                continue;
            }
            const float sum = operands.sum(r, o);
            if (exact) {
                CHECK_CLOSE(actual[at], c.add ? operands.out[at] + sum : sum, 0.0);
                continue;
            }
            // 1 + erf(x) cancels for negative x: the error is relative to x.
            const double up = c.gated ? operands.sum(r, o + c.width()) : 1.0;
            const double expected = reference_activation(c.activation, sum) * up + (c.add ? operands.out[at] : 0.0);
            CHECK_CLOSE(actual[at], expected, 1e-6, std::fmax(0.1, std::fabs(sum * up)));
        }
    }
}

}  // namespace

TEST(linear_matches_the_reference_with_every_epilogue) {
    Random random(1);
    for (const WeightFormat format : check::kWeightFormats) {
        for (int i = 0; i < 40; ++i) {
            Operands operands(random_case(random, format), random);
            Buffer<float> actual(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(actual, operands.out);
                kernels.linear(operands.task(kernels, actual));
                if (!rounds_activations(kernels, operands.c)) return check_against_reference(operands, actual);
                if (operands.c.activation == Activation::none && !operands.c.gated) check_rounded(operands, actual);
            });
        }
    }
}

// The result is close to the product in double, whatever the order of the sums.
TEST(linear_is_close_to_the_product_in_double) {
    Random random(2);
    for (const WeightFormat format : check::kWeightFormats) {
        Case c{format.dtype,
               format.quantized,
               40,
               1500,
               11,
               false,
               false,
               false,
               Activation::none,
               check::random_groups(random, format.dtype)};
        Operands operands(c, random);
        Buffer<float> actual(operands.out.count());
        check::for_each_isa([&](const hasten::Kernels& kernels) {
            kernels.linear(operands.task(kernels, actual));
            for (int r = 0; r < c.rows; ++r) {
                for (int o = 0; o < c.out; ++o) {
                    double expected = 0.0, size = 0.0;
                    for (int k = 0; k < c.in; ++k) {
                        const double x = c.quantized ? operands.scales[r] * double{operands.q[r * operands.q_stride + k] * 1.0}
                                                     : operands.x[r * operands.x_stride + k];
                        const double product = x * operands.level(o, k) * operands.weights.scale(o);
                        expected += product;
                        size += std::fabs(product);
                    }
                    CHECK_CLOSE(actual[r * c.out_stride() + o] / size, expected / size,
                                rounds_activations(kernels, c) ? 1e-3
                                : operands.has_int16_inputs()  ? 1e-4
                                                               : 3e-6);
                }
            }
        });
    }
}

TEST(linear_is_batch_invariant) {
    Random random(3);
    for (const WeightFormat format : check::kWeightFormats) {
        for (int i = 0; i < 12; ++i) {
            Operands operands(random_case(random, format), random);
            const Case& c = operands.c;
            Buffer<float> full(operands.out.count()), partial(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(full, operands.out);
                copy(partial, operands.out);
                kernels.linear(operands.task(kernels, full));
                const hasten::LinearTask all_rows = operands.task(kernels, partial);
                for (int row = 0; row < c.rows;) {
                    const int max_rows = rounds_activations(kernels, c) ? c.rows : c.rows - row < 20 ? c.rows - row : 20;
                    const int rows = max_rows == c.rows ? max_rows : random.integer(1, max_rows);
                    for (int panel = 0; panel < all_rows.panel_end;) {
                        hasten::LinearTask piece = all_rows;
                        piece.panel_begin = panel;
                        piece.panel_end = panel = random.integer(panel + 1, all_rows.panel_end);
                        piece.rows = rows;
                        if (!c.quantized) piece.x.data += row * piece.x.stride;
                        if (piece.x_int16.data != nullptr) piece.x_int16 = piece.x_int16.from(row);
                        if (piece.x_bf16.data != nullptr) piece.x_bf16.data += row * piece.x_bf16.stride;
                        piece.out.data += row * piece.out.stride;
                        if (c.quantized) piece.quantized.data += row * piece.quantized.stride;
                        if (c.quantized) piece.quantized.scales += row;
                        if (c.quantized) piece.quantized.sums += row;
                        kernels.linear(piece);
                    }
                    row += rows;
                }
                CHECK(full.same(partial));
            });
        }
    }
}

TEST(linear_has_the_same_bits_on_every_instruction_set) {
    Random random(4);
    for (const WeightFormat format : check::kWeightFormats) {
        for (int i = 0; i < 20; ++i) {
            Operands operands(random_case(random, format), random);
            Buffer<float> first(operands.out.count()), other(operands.out.count());
            copy(first, operands.out);
            check::isa(0)->linear(operands.task(*check::isa(0), first));
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                copy(other, operands.out);
                kernels.linear(operands.task(kernels, other));
                CHECK(first.same(other) || rounds_activations(kernels, operands.c));
            });
        }
    }
}

// Long rows: several blocks of inputs in scratch, and integer sums near the end of their range.
TEST(linear_of_long_rows) {
    Random random(5);
    for (const WeightFormat format : check::kWeightFormats) {
        for (int rows = 1; rows <= 65; rows += 32) {
            Case c{format.dtype,
                   format.quantized,
                   17,
                   19000,
                   rows,
                   true,
                   false,
                   false,
                   Activation::none,
                   check::random_groups(random, format.dtype)};
            Operands operands(c, random);
            if (c.quantized) operands.set_largest_sum();
            Buffer<float> actual(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                kernels.linear(operands.task(kernels, actual));
                rounds_activations(kernels, c) ? check_rounded(operands, actual) : check_against_reference(operands, actual);
            });
        }
    }
}

// The widest rows that limits.h allows with int8 activations: scratch holds them, and the largest possible sums fit an int32.
TEST(linear_of_the_widest_int8_rows) {
    Random random(6);
    const int inputs = static_cast<int>(hasten::kMaxInt8Inputs);
    for (const WeightFormat format : check::kWeightFormats) {
        if (!format.quantized) continue;
        for (const int rows : {1, 9}) {
            Case c{format.dtype,
                   true,
                   33,
                   inputs - (rows == 9 ? 3 : 0),
                   rows,
                   false,
                   false,
                   false,
                   Activation::none,
                   check::random_groups(random, format.dtype)};
            Operands operands(c, random);
            operands.set_largest_sum();
            Buffer<float> actual(operands.out.count());
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                kernels.linear(operands.task(kernels, actual));
                check_against_reference(operands, actual);
            });
        }
    }
}
