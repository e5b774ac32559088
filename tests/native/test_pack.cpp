// Weight packing: every source type and stride into every layout, against a scalar reading of the source.
#include <initializer_list>
#include <limits>

#include "packed_matrix.h"

using check::Buffer;
using check::PackedMatrix;
using check::Random;
using hasten::Dtype;

namespace {

constexpr Dtype kSources[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
constexpr Dtype kTargets[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8, Dtype::int4, Dtype::bf16_compressed};

// A checkpoint tensor [out, in], perhaps stored transposed or as a slice of wider rows.
struct Tensor {
    Dtype dtype;
    int out, in;
    int64_t row_stride, column_stride;
    Buffer<uint8_t> memory;

    Tensor(Dtype type, int outputs, int inputs, Random& random)
        : dtype(type),
          out(outputs),
          in(inputs),
          row_stride(random.coin() ? in + random.integer(0, 3) : 1),
          column_stride(row_stride == 1 ? out + random.integer(0, 3) : 1),
          memory(((out - 1) * row_stride + (in - 1) * column_stride + 1) * (dtype == Dtype::f32 ? 4 : 2)) {
        for (int o = 0; o < out; ++o) {
            const float size = o % 7 == 3 ? 1e-3f : 1.0f;
            for (int k = 0; k < in; ++k) set(o, k, size * random.normal());
        }
    }

    uint8_t* at(int o, int k) { return memory.data() + (o * row_stride + k * column_stride) * (dtype == Dtype::f32 ? 4 : 2); }
    const uint8_t* at(int o, int k) const { return const_cast<Tensor*>(this)->at(o, k); }
    void set(int o, int k, float value) {
        const uint16_t half = dtype == Dtype::f16 ? check::to_f16(value) : check::to_bf16(value);
        if (dtype == Dtype::f32)
            std::memcpy(at(o, k), &value, 4);
        else
            std::memcpy(at(o, k), &half, 2);
    }
    float get(int o, int k) const {
        float value;
        uint16_t half;
        if (dtype == Dtype::f32) {
            std::memcpy(&value, at(o, k), 4);
            return value;
        }
        std::memcpy(&half, at(o, k), 2);
        return dtype == Dtype::f16 ? check::from_f16(half) : check::from_bf16(half);
    }

    // Packs all rows in random ranges, forwards or backwards. Returns whether the kernel found all weights finite.
    bool pack(const hasten::Kernels& kernels, PackedMatrix& to, Random& random) const {
        std::memset(to.data.data(), 0x5a, to.data.bytes());
        std::memset(to.scales.data(), 0x5a, to.scales.bytes());
        std::memset(to.exponent_bases.data(), 0x5a, to.exponent_bases.bytes());
        std::memset(to.outliers.data(), 0x5a, to.outliers.bytes());
        std::memset(to.num_outliers.data(), 0, to.num_outliers.bytes());
        const bool backwards = random.coin();
        bool all_finite = true;
        for (int done = 0; done < out;) {
            const int rows = random.integer(1, out - done);
            const int row = backwards ? out - done - rows : done;
            if (!kernels.pack({&to.matrix, at(row, 0), dtype, row_stride, column_stride, row, rows})) all_finite = false;
            done += rows;
        }
        return all_finite;
    }
};

// The weight of largest magnitude, with its sign.
float extreme_weight(const Tensor& tensor, int o, int begin, int end) {
    float low = 0.0f, high = 0.0f;
    for (int k = begin; k < end && k < tensor.in; ++k) {
        low = std::fmin(low, tensor.get(o, k));
        high = std::fmax(high, tensor.get(o, k));
    }
    return high >= -low ? high : low;
}

// Padding is zero in every layout.
void check_padding(const PackedMatrix& packed) {
    const hasten::Matrix& matrix = packed.matrix;
    for (int64_t o = 0; o < matrix.panels * 16; ++o) {
        for (int64_t k = 0; k < matrix.padded_in; ++k) {
            if (o >= matrix.out_features || k >= matrix.in_features) CHECK_CLOSE(packed.level(o, k), 0.0, 0.0);
        }
    }
    for (int64_t o = matrix.out_features; o < matrix.panels * 16; ++o) CHECK(std::isfinite(packed.scale(o)));
}

void check_float(const Tensor& tensor, const PackedMatrix& packed) {
    for (int o = 0; o < tensor.out; ++o) {
        for (int k = 0; k < tensor.in; ++k) {
            float expected = tensor.get(o, k);
            if (hasten::is_bf16(packed.matrix.dtype)) expected = check::from_bf16(check::to_bf16(expected));
            if (packed.matrix.dtype == Dtype::f16) expected = check::from_f16(check::to_f16(expected));
            CHECK_CLOSE(packed.level(o, k), expected, 0.0);
        }
    }
}

void check_int8(const Tensor& tensor, const PackedMatrix& packed) {
    for (int o = 0; o < tensor.out; ++o) {
        const double absmax = std::fabs(extreme_weight(tensor, o, 0, tensor.in));
        CHECK_CLOSE(packed.scale(o), absmax / 127.0, 1e-6, 0.0);
        for (int k = 0; k < tensor.in; ++k) {
            CHECK(std::fabs(packed.level(o, k)) <= 127.0f);
            CHECK_CLOSE(packed.level(o, k), absmax > 0.0 ? tensor.get(o, k) * 127.0 / absmax : 0.0, 0.50002);
        }
    }
}

// Squared error of a group with the integer scale `scale` and nearest levels, in units of its output's scale `unit`.
double group_error(const Tensor& tensor, int o, int begin, double unit, int scale) {
    double total = 0.0;
    for (int k = begin; k < begin + 16 && k < tensor.in; ++k) {
        const double value = tensor.get(o, k) / unit;
        const double level = std::fmin(7.0, std::fmax(-8.0, std::nearbyint(value / scale)));
        total += (value - level * scale) * (value - level * scale);
    }
    return total;
}

// Every group has the best of all scales, except the group of the row's largest weight, which is kept exactly.
void check_int4(const Tensor& tensor, const PackedMatrix& packed) {
    for (int o = 0; o < tensor.out; ++o) {
        const double absmax = std::fabs(extreme_weight(tensor, o, 0, tensor.in)), unit = absmax > 0.0 ? absmax / 120.0 : 1.0;
        CHECK_CLOSE(packed.scale(o), absmax / 120.0, 1e-6, 0.0);
        for (int begin = 0; begin < tensor.in; begin += 16) {
            double error = 0.0, min_error = INFINITY;
            bool exact = false;
            for (int k = begin; k < begin + 16 && k < tensor.in; ++k) {
                const double off = tensor.get(o, k) / unit - packed.level(o, k);
                error += off * off;
                exact |= absmax > 0.0 && std::fabs(packed.level(o, k)) == 120.0f;
            }
            for (int scale = 1; scale <= 15; ++scale) {
                min_error = std::fmin(min_error, group_error(tensor, o, begin, unit, scale));
                min_error = std::fmin(min_error, group_error(tensor, o, begin, unit, -scale));
            }
            const bool holds_extreme =
                absmax > 0.0 && std::fabs(extreme_weight(tensor, o, begin, begin + 16)) == static_cast<float>(absmax);
            CHECK(holds_extreme ? exact : error <= min_error * 1.0001 + 1e-3);
        }
    }
}

void check_packed(const Tensor& tensor, const PackedMatrix& packed) {
    check_padding(packed);
    if (packed.matrix.dtype == Dtype::int8) return check_int8(tensor, packed);
    if (packed.matrix.dtype == Dtype::int4) return check_int4(tensor, packed);
    check_float(tensor, packed);
}

}  // namespace

TEST(pack_writes_the_documented_layout_from_every_source) {
    Random random(11);
    for (const Dtype source : kSources) {
        for (const Dtype target : kTargets) {
            for (int i = 0; i < 8; ++i) {
                const Tensor tensor(source, random.integer(1, 70), random.integer(1, 600), random);
                PackedMatrix packed(target, tensor.out, tensor.in);
                check::for_each_isa([&](const hasten::Kernels& kernels) {
                    tensor.pack(kernels, packed, random);
                    check_packed(tensor, packed);
                });
            }
        }
    }
}

TEST(pack_has_the_same_bits_on_every_instruction_set) {
    Random random(12);
    for (const Dtype target : kTargets) {
        const Tensor tensor(Dtype::f32, 37, 333, random);
        PackedMatrix first(target, tensor.out, tensor.in), other(target, tensor.out, tensor.in);
        tensor.pack(*check::isa(0), first, random);
        check::for_each_isa([&](const hasten::Kernels& kernels) {
            tensor.pack(kernels, other, random);
            CHECK(first.data.same(other.data) && first.scales.same(other.scales));
            CHECK(first.exponent_bases.same(other.exponent_bases) && first.num_outliers.same(other.num_outliers));
        });
    }
}

// Zero rows, values whose scale would be subnormal, and weights that are on an int4 grid already.
TEST(pack_of_extreme_rows) {
    Random random(13);
    for (const Dtype target : kTargets) {
        Tensor tensor(Dtype::f32, 5, 200, random);
        for (int k = 0; k < tensor.in; ++k) {
            tensor.set(0, k, 0.0f);
            tensor.set(1, k, 1e-42f);
            tensor.set(2, k, 0.25f * static_cast<float>(k % 16 - 8));
            tensor.set(3, k, -0.5f * static_cast<float>(k % 16 - 8));
            tensor.set(4, k, k == 7 ? 3e38f : -1e37f);
        }
        PackedMatrix packed(target, tensor.out, tensor.in);
        check::for_each_isa([&](const hasten::Kernels& kernels) {
            tensor.pack(kernels, packed, random);
            for (int o = 0; o < tensor.out; ++o) {
                for (int k = 0; k < tensor.in; ++k) {
                    const float restored = packed.level(o, k) * packed.scale(o);
                    if (target == Dtype::f16) continue;  // 3e38 exceeds its range
                    CHECK(std::isfinite(restored));
                    if (o < 2) CHECK_CLOSE(restored, tensor.get(o, k), 1e-30, 1.0);
                    if (target == Dtype::int4 && (o == 2 || o == 3)) CHECK_CLOSE(restored, tensor.get(o, k), 1e-6);
                }
            }
        });
    }
}

// Weights of every exponent, with NaN and infinity, are restored bit by bit unless an outlier list overflows.
TEST(bf16_compression_is_lossless) {
    Random random(14);
    int64_t num_read = 0;
    for (int i = 0; i < 40; ++i) {
        Tensor tensor(Dtype::bf16, random.integer(1, 70), random.integer(1, 300), random);
        for (int o = random.integer(0, 40); o < tensor.out; o += 40) {  // an output of large exponents fills its panel's list
            const auto bits = static_cast<uint16_t>(random.integer(0, 0xffff));
            std::memcpy(tensor.at(o, random.integer(0, tensor.in - 1)), &bits, 2);
        }
        PackedMatrix packed(Dtype::bf16_compressed, tensor.out, tensor.in);
        const int64_t stride = check::round_up(tensor.in, 16);
        Buffer<float> row(stride);
        check::for_each_isa([&](const hasten::Kernels& kernels) {
            tensor.pack(kernels, packed, random);
            for (int32_t o = 0; o < tensor.out; ++o) {
                if (packed.num_outliers[o / 16] > PackedMatrix::kMaxOutliers) continue;  // then the matrix is stored as plain bf16
                kernels.embed({&packed.matrix, &o, false, {row.data(), stride}, 0, 1});
                num_read += tensor.in;
                for (int k = 0; k < tensor.in; ++k) {
                    const float expected = tensor.get(o, k);
                    CHECK(std::memcmp(&row[k], &expected, 4) == 0 || (std::isnan(expected) && std::isnan(row[k])));
                }
            }
        });
    }
    CHECK(num_read > 50000);
}

// One NaN or infinity anywhere in a tensor is found, in every format, and nothing else is. Quantised formats would hide it.
TEST(packing_finds_weights_that_are_not_finite) {
    Random random(15);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float planted[] = {std::nanf(""), kInfinity, -kInfinity};
    for (const Dtype source : kSources) {
        for (const Dtype target : kTargets) {
            for (int i = 0; i < 6; ++i) {
                Tensor tensor(source, random.integer(1, 40), random.integer(1, 600), random);
                tensor.set(0, 0, source == Dtype::f32 && target != Dtype::f16 ? 3e38f : 6e4f);  // large but finite
                const int output = random.integer(0, tensor.out - 1), input = random.integer(0, tensor.in - 1);
                const float weight = tensor.get(output, input);
                PackedMatrix packed(target, tensor.out, tensor.in);
                check::for_each_isa([&](const hasten::Kernels& kernels) {
                    CHECK(tensor.pack(kernels, packed, random));
                    tensor.set(output, input, planted[i % 3]);
                    CHECK(!tensor.pack(kernels, packed, random));
                    tensor.set(output, input, weight);
                });
            }
        }
    }
    // A weight that the format turns into infinity is not finite either.
    Tensor large(Dtype::f32, 3, 40, random);
    large.set(1, 39, 1e6f);
    PackedMatrix packed(Dtype::f16, 3, 40);
    check::for_each_isa([&](const hasten::Kernels& kernels) { CHECK(!large.pack(kernels, packed, random)); });
}

// Codes, scales and offsets are kept bit by bit, in pieces and in every group size; embedding returns the documented weight.
TEST(pack_codes_keeps_what_is_stored) {
    Random random(16);
    for (const Dtype dtype : {Dtype::codes4, Dtype::codes8, Dtype::fp8, Dtype::int8}) {
        for (int i = 0; i < 12; ++i) {
            const int out = random.integer(1, 70), in = random.integer(1, 300), size = 16 << random.integer(0, 3);
            const bool is_grouped = hasten::is_grouped(dtype), has_offsets = hasten::is_coded(dtype) && random.coin();
            const int groups = is_grouped ? (in + size - 1) / size : 1;
            PackedMatrix packed(dtype, out, in, is_grouped ? check::Groups{size, has_offsets, false} : check::Groups{});
            Buffer<uint8_t> codes(int64_t{out} * in);
            Buffer<float> scales(int64_t{out} * groups), offsets(int64_t{out} * groups), row(check::round_up(in, 16));
            for (int64_t j = 0; j < codes.count(); ++j) {
                const int code = random.integer(0, dtype == Dtype::codes4 ? 15 : 255);
                codes[j] = static_cast<uint8_t>(dtype == Dtype::fp8 && (code & 127) == 127 ? 0 : code);
            }
            for (int64_t j = 0; j < scales.count(); ++j) scales[j] = random.normal(), offsets[j] = random.normal();
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                std::memset(packed.data.data(), 0, packed.data.bytes());
                const auto pack = [&] {
                    bool all_finite = true;
                    for (int begin = 0, rows = 0; begin < out; begin += rows) {
                        rows = random.integer(1, out - begin);
                        const int64_t first = int64_t{begin} * groups;
                        if (!kernels.pack_codes({&packed.matrix, codes.data() + int64_t{begin} * in, in, scales.data() + first,
                                                 has_offsets ? offsets.data() + first : nullptr, begin, rows}))
                            all_finite = false;
                    }
                    return all_finite;
                };
                CHECK(pack());
                for (int32_t o = 0; o < out; ++o) {
                    kernels.embed({&packed.matrix, &o, false, {row.data(), row.count()}, 0, 1});
                    for (int k = 0; k < in; ++k) {
                        const int64_t group = o * groups + (is_grouped ? k / size : 0);
                        if (is_grouped) {
                            CHECK(packed.code(o, k) == codes[int64_t{o} * in + k]);
                            CHECK(packed.group_scale(o, k) == scales[group]);
                            CHECK(!has_offsets || packed.group_offset(o, k) == offsets[group]);
                            CHECK(row[k] == packed.grouped_weight(o, k));
                        } else {
                            CHECK(row[k] == scales[group] * static_cast<float>(codes[int64_t{o} * in + k] - 128));
                        }
                    }
                }
                if (!is_grouped) check_padding(packed);
                Buffer<float>& spoiled = has_offsets && random.coin() ? offsets : scales;
                const int64_t at = random.integer(0, static_cast<int>(spoiled.count()) - 1);
                const float value = spoiled[at];
                spoiled[at] = random.coin() ? std::nanf("") : std::numeric_limits<float>::infinity();
                CHECK(!pack());
                spoiled[at] = value;
                if (dtype != Dtype::fp8) return;
                const int64_t nan_at = random.integer(0, static_cast<int>(codes.count()) - 1);
                const uint8_t code = codes[nan_at];
                codes[nan_at] = random.coin() ? 0x7f : 0xff;
                CHECK(!pack());
                codes[nan_at] = code;
            });
        }
    }
}

// The same for nested groups, whose scales and offsets are bytes times a float16 for 256 inputs.
TEST(pack_nested_keeps_what_is_stored) {
    Random random(17);
    for (const Dtype dtype : {Dtype::codes4, Dtype::codes8}) {
        for (int i = 0; i < 12; ++i) {
            const int out = random.integer(1, 40), in = random.integer(1, 700), size = 16 << random.integer(0, 3);
            const bool has_offsets = random.coin();
            const int groups = (in + size - 1) / size, blocks = (in + 255) / 256;
            PackedMatrix packed(dtype, out, in, {size, has_offsets, true});
            Buffer<uint8_t> codes(int64_t{out} * in);
            Buffer<int8_t> scales(int64_t{out} * groups), offsets(int64_t{out} * groups);
            Buffer<uint16_t> block_scales(int64_t{out} * blocks), block_offsets(int64_t{out} * blocks);
            Buffer<float> row(check::round_up(in, 16));
            for (int64_t j = 0; j < codes.count(); ++j)
                codes[j] = static_cast<uint8_t>(random.integer(0, dtype == Dtype::codes4 ? 15 : 255));
            for (int64_t j = 0; j < scales.count(); ++j) {
                scales[j] = static_cast<int8_t>(random.integer(-128, 127));
                offsets[j] = static_cast<int8_t>(random.integer(-128, 127));
            }
            for (int64_t j = 0; j < block_scales.count(); ++j) {
                block_scales[j] = check::to_f16(0.01f * random.normal());
                block_offsets[j] = check::to_f16(0.01f * random.normal());
            }
            check::for_each_isa([&](const hasten::Kernels& kernels) {
                std::memset(packed.data.data(), 0, packed.data.bytes());
                const auto pack = [&] {
                    return kernels.pack_nested({&packed.matrix, codes.data(), in, scales.data(),
                                                has_offsets ? offsets.data() : nullptr, block_scales.data(),
                                                has_offsets ? block_offsets.data() : nullptr, 0, out});
                };
                CHECK(pack());
                for (int32_t o = 0; o < out; ++o) {
                    kernels.embed({&packed.matrix, &o, false, {row.data(), row.count()}, 0, 1});
                    for (int k = 0; k < in; ++k) {
                        const int64_t group = o * groups + k / size, block = o * blocks + k / 256;
                        const float scale = check::from_f16(block_scales[block]) * static_cast<float>(scales[group]);
                        const float offset =
                            has_offsets ? check::from_f16(block_offsets[block]) * static_cast<float>(offsets[group]) : 0.0f;
                        CHECK(packed.code(o, k) == codes[int64_t{o} * in + k]);
                        CHECK(packed.group_scale(o, k) == scale && packed.group_offset(o, k) == offset);
                        CHECK(row[k] == std::fmaf(scale, static_cast<float>(packed.code(o, k) - packed.zero()), offset));
                    }
                }
                const int64_t at = random.integer(0, static_cast<int>(block_scales.count()) - 1);
                const uint16_t finite = block_scales[at];
                block_scales[at] = random.coin() ? 0x7c00 : 0xfe00;
                CHECK(!pack());
                block_scales[at] = finite;
            });
        }
    }
}
