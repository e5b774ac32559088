// The row-wise kernels: norms, activations, embeddings, cos/sin tables, and QK norm with RoPE and KV cache write.
#include "test_harness.h"

#include <algorithm>
#include <limits>
#include <vector>

using namespace hasten;
using check::Random;

namespace {

void fill(check::Buffer<float>& values, Random& random, float size = 1.0f) {
    for (int64_t i = 0; i < values.count(); ++i) values[i] = random.normal() * size;
}

// Rows of `width` random columns, with zeros up to the stride.
struct FloatRows {
    int64_t stride;
    check::Buffer<float> data;
    FloatRows(int rows, int width, int spare = 0) : stride(check::round_up(width, 16) + spare), data(rows * stride) {}
    Rows view() { return {data.data(), stride}; }
    void fill(int width, Random& random) {
        for (int64_t i = 0; i < data.count(); ++i) data[i] = i % stride < width ? random.normal() * 2.0f : 0.0f;
    }
    void fill_with_nan() { std::memset(data.data(), 0xff, data.bytes()); }
};

struct Int8Rows {
    int64_t stride;
    check::Buffer<int8_t> data;
    check::Buffer<float> scales;
    check::Buffer<int32_t> sums;
    Int8Rows(int rows, int width) : stride(check::round_up(width, 64)), data(rows * stride), scales(rows), sums(rows) {
        std::memset(data.data(), 0x55, data.bytes());
    }
    QuantizedRows view() { return {data.data(), stride, scales.data(), sums.data()}; }
};

// The row as int8, as defined in kernels.h.
void check_quantized(const Int8Rows& actual, int64_t t, const float* row, int width) {
    float absmax = 0.0f;
    for (int i = 0; i < width; ++i) absmax = std::max(absmax, std::fabs(row[i]));
    CHECK_CLOSE(actual.scales[t], absmax / 127.0f, 1e-7, 1e-30);
    int32_t sum = 0;
    for (int64_t i = 0; i < actual.stride; ++i) {
        const int q = i < width && absmax > 0 ? static_cast<int>(std::nearbyint(row[i] * (127.0f / absmax))) : 0;
        CHECK(actual.data[t * actual.stride + i] == q);
        sum += q;
    }
    CHECK(actual.sums[t] == sum);
}

constexpr int kWidths[] = {1, 16, 40, 64, 127, 1024, 3072};

double reference_activation(Activation kind, double x) {
    switch (kind) {
        case Activation::silu:
            return x / (1.0 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh:
            return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::none:
            break;
    }
    return x;
}

}  // namespace

TEST(norm_matches_the_reference) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(21);
        for (int round = 0; round < 90; ++round) {
            const int width = kWidths[round % 7], rows = random.integer(1, 5);
            const NormKind kind = static_cast<NormKind>(round % 3);
            FloatRows x(rows, width, 16 * random.integer(0, 1)), out(rows, width, 16);
            Int8Rows quantized(rows, width);
            check::Buffer<float> weight(check::round_up(width, 16)), bias(check::round_up(width, 16));
            for (int i = 0; i < width; ++i) weight[i] = random.normal(), bias[i] = random.normal();
            x.fill(width, random);
            if (round % 4 == 0) std::memset(x.data.data(), 0, static_cast<size_t>(width) * 4);  // a zero row
            out.fill_with_nan();
            NormTask task{kind,       x.view(),         width, weight.data(), round % 2 ? bias.data() : nullptr, 1e-5f,
                          out.view(), quantized.view(), 0,     rows};
            kernels.norm(task);
            for (int t = 0; t < rows; ++t) {
                const float *row = x.data.data() + t * x.stride, *actual = out.data.data() + t * out.stride;
                double mean = 0.0, square = 0.0;
                for (int i = 0; i < width && kind == NormKind::layer; ++i) mean += row[i] / static_cast<double>(width);
                for (int i = 0; i < width; ++i) square += (row[i] - mean) * (row[i] - mean) / width;
                const double inverse = kind == NormKind::none ? 1.0 : 1.0 / std::sqrt(square + 1e-5);
                for (int i = 0; i < width; ++i) {
                    double expected = (row[i] - mean) * inverse;
                    if (kind != NormKind::none) expected *= weight[i];
                    if (kind == NormKind::layer && task.bias != nullptr) expected += bias[i];
                    CHECK_CLOSE(actual[i], expected, 1e-5);
                }
                for (int64_t i = width; i < out.stride; ++i) CHECK(actual[i] == 0.0f);
                check_quantized(quantized, t, actual, width);
            }
            // One row at a time and without float output: the same bits.
            Int8Rows separate(rows, width);
            task.out = {};
            task.quantized = separate.view();
            for (int t = rows; t-- > 0;) {
                task.begin = t;
                task.end = t + 1;
                kernels.norm(task);
            }
            CHECK(separate.data.same(quantized.data) && separate.scales.same(quantized.scales) &&
                  separate.sums.same(quantized.sums));
        }
    });
}

TEST(activation_matches_the_reference) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(22);
        for (int round = 0; round < 64; ++round) {
            const int width = kWidths[round % 7], rows = random.integer(1, 4);
            const Activation kind = static_cast<Activation>(round % 4);
            const bool gated = round / 4 % 2 == 0;
            FloatRows x(rows, gated ? 2 * width : width), out(rows, width, 16);
            x.fill(gated ? 2 * width : width, random);
            out.fill_with_nan();
            Int8Rows both(rows, width), separate(rows, width);
            check::Buffer<float> scratch(check::round_up(width, 16));
            ActivateTask task{kind, gated, x.view(), width, out.view(), both.view(), scratch.data(), 0, rows};
            kernels.activate(task);
            for (int t = 0; t < rows; ++t) {
                const float *row = x.data.data() + t * x.stride, *actual = out.data.data() + t * out.stride;
                for (int i = 0; i < width; ++i) {
                    const double expected = reference_activation(kind, row[i]) * (gated ? row[width + i] : 1.0);
                    CHECK_CLOSE(actual[i], expected, 1e-6);
                }
                for (int64_t i = width; i < out.stride; ++i) CHECK(actual[i] == 0.0f);
                check_quantized(both, t, actual, width);
            }
            task.out = {};
            task.quantized = separate.view();
            kernels.activate(task);
            CHECK(separate.data.same(both.data) && separate.scales.same(both.scales) && separate.sums.same(both.sums));
        }
    });
}

// Over the whole range with its tails: intermediate overflow or underflow must not show.
TEST(activation_is_accurate_over_its_range) {
    check::for_each_isa([](const Kernels& kernels) {
        for (Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
            FloatRows x(1, 4096), out(1, 4096);
            for (int i = 0; i < 4096; ++i) x.data[i] = static_cast<float>(i - 2048) * (i % 2 ? 0.004f : 0.1f);
            kernels.activate({kind, false, x.view(), 4096, out.view(), {}, nullptr, 0, 1});
            for (int i = 0; i < 4096; ++i) CHECK_CLOSE(out.data[i], reference_activation(kind, x.data[i]), 3e-7);
        }
    });
}

TEST(non_finite_values_propagate) {
    check::for_each_isa([](const Kernels& kernels) {
        for (float non_finite : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
            FloatRows x(1, 100), out(1, 100);
            Int8Rows quantized(1, 100);
            x.data[3] = non_finite;
            kernels.norm({NormKind::none, x.view(), 100, nullptr, nullptr, 0.0f, {}, quantized.view(), 0, 1});
            CHECK(std::isnan(quantized.scales[0]));
            for (Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh}) {
                kernels.activate({kind, false, x.view(), 100, out.view(), {}, nullptr, 0, 1});
                CHECK(!std::isfinite(out.data[3]));
            }
        }
    });
}

TEST(embedding_of_packed_matrices) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(23);
        for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8, Dtype::int4}) {
            for (int in : {20, 64, 200}) {
                const int out_features = 37, panels = 3;
                const int padded = static_cast<int>(check::round_up(in, dtype == Dtype::bf16                           ? 32
                                                                        : dtype == Dtype::int8 || dtype == Dtype::int4 ? 64
                                                                                                                       : 1));
                const int64_t bytes = dtype == Dtype::f32    ? padded * 64
                                      : dtype == Dtype::int8 ? padded * 16
                                      : dtype == Dtype::int4 ? padded * 9
                                                             : padded * 32;
                check::Buffer<uint8_t> data(panels * bytes);
                check::Buffer<float> scales(panels * 16);
                fill(scales, random, 0.1f);
                const Matrix matrix{dtype, out_features, in, padded, panels, data.data(), bytes, scales.data()};
                std::vector<float> expected(static_cast<size_t>(out_features * in));
                for (int o = 0; o < out_features; ++o) {
                    for (int i = 0; i < in; ++i) {
                        uint8_t* panel = data.data() + o / 16 * bytes;
                        const int lane = o % 16;
                        const float v = random.normal();
                        float& expected_weight = expected[static_cast<size_t>(o * in + i)];
                        const uint16_t half = dtype == Dtype::bf16 ? check::to_bf16(v) : check::to_f16(v);
                        const int q = random.integer(-8, 7);
                        if (dtype == Dtype::f32) {
                            std::memcpy(panel + (i * 16 + lane) * 4, &v, 4);
                            expected_weight = v;
                        } else if (dtype == Dtype::bf16) {
                            std::memcpy(panel + (i / 2 * 32 + lane * 2 + i % 2) * 2, &half, 2);
                            expected_weight = check::from_bf16(half);
                        } else if (dtype == Dtype::f16) {
                            std::memcpy(panel + (i * 16 + lane) * 2, &half, 2);
                            expected_weight = check::from_f16(half);
                        } else if (dtype == Dtype::int8) {
                            panel[i / 4 * 64 + lane * 4 + i % 4] = static_cast<uint8_t>(128 + q * 15);
                            expected_weight = scales[o] * static_cast<float>(q * 15);
                        } else {
                            uint8_t* block = panel + i / 64 * 576;
                            const int s = (i / 16 * 7 + lane) % 31 - 15;
                            block[i % 64 / 16 * 16 + lane] = static_cast<uint8_t>(s);
                            uint8_t& byte = block[64 + i % 64 / 8 * 64 + lane * 4 + i % 4];
                            byte = static_cast<uint8_t>(byte | (q + 8) << (i % 8 < 4 ? 0 : 4));
                            expected_weight = scales[o] * static_cast<float>(s * q);
                        }
                    }
                }
                const int32_t ids[] = {36, 0, 16, 5};
                FloatRows out(4, in, 16);
                out.fill(in, random);
                for (bool add : {false, true}) {
                    FloatRows before(4, in, 16);
                    std::memcpy(before.data.data(), out.data.data(), out.data.bytes());
                    if (!add) out.fill_with_nan();
                    kernels.embed({&matrix, ids, add, out.view(), 0, 4});
                    for (int t = 0; t < 4; ++t) {
                        for (int64_t i = 0; i < out.stride; ++i) {
                            const float row = i < in ? expected[static_cast<size_t>(ids[t] * in + i)] : 0.0f;
                            CHECK(out.data[t * out.stride + i] == (add && i < in ? before.data[t * out.stride + i] + row : row));
                        }
                    }
                }
            }
        }
    });
}

TEST(rotary_table_matches_the_reference) {
    check::for_each_isa([](const Kernels& kernels) {
        for (int half : {3, 20, 64}) {
            check::Buffer<float> frequencies(half);
            for (int i = 0; i < half; ++i) frequencies[i] = std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half));
            const int32_t positions[] = {0, 1, 2, 3, 1000, 40959, 131071, 1 << 30};
            check::Buffer<float> cos_sin(8 * 2 * half);
            kernels.rotary_table({frequencies.data(), half, 0.75f, positions, cos_sin.data(), 0, 8});
            for (int t = 0; t < 8; ++t) {
                for (int i = 0; i < half; ++i) {
                    const float angle = static_cast<float>(positions[t]) * frequencies[i];
                    CHECK_CLOSE(cos_sin[t * 2 * half + i], 0.75 * std::cos(static_cast<double>(angle)), 2e-7);
                    CHECK_CLOSE(cos_sin[t * 2 * half + half + i], 0.75 * std::sin(static_cast<double>(angle)), 2e-7);
                }
            }
        }
    });
}

namespace {

// One problem of rope_and_cache and its expected result, read back from the layout documented in kernels.h.
struct RopeAndCacheCase {
    int heads, kv_heads, dim, slots, tokens = 6;
    Dtype dtype;
    NormKind norm;
    bool has_rope;

    int pack() const { return dtype == Dtype::int8 ? 4 : dtype == Dtype::bf16 ? 2 : 1; }
    int size() const { return dtype == Dtype::int8 ? 1 : dtype == Dtype::f32 ? 4 : 2; }

    // Head h of a token after norm and RoPE.
    std::vector<double> expected(const float* head, const check::Buffer<float>& weight, const float* bias,
                                 const float* cos_sin) const {
        std::vector<double> x(head, head + dim), out(x);
        double mean = 0.0, square = 0.0;
        for (double v : x) mean += norm == NormKind::layer ? v / dim : 0.0;
        for (double v : x) square += (v - mean) * (v - mean) / dim;
        for (int i = 0; i < dim && norm != NormKind::none; ++i) {
            x[static_cast<size_t>(i)] =
                (x[static_cast<size_t>(i)] - mean) / std::sqrt(square + 1e-6) * weight[i] + (bias != nullptr ? bias[i] : 0.0f);
        }
        if (!has_rope) return x;
        const size_t half = static_cast<size_t>(dim / 2);
        for (size_t i = 0; i < half; ++i) {
            out[i] = x[i] * cos_sin[i] - x[i + half] * cos_sin[half + i];
            out[i + half] = x[i + half] * cos_sin[i] + x[i] * cos_sin[half + i];
        }
        return out;
    }

    // Element d of a stored key or value at `p`, as a double without its scale.
    static double stored(Dtype dtype, const uint8_t* p, int offset) {
        float wide;
        uint16_t half;
        std::memcpy(&half, p, dtype == Dtype::int8 ? 1 : 2);
        if (dtype == Dtype::bf16) return check::from_bf16(half);
        if (dtype == Dtype::f16) return check::from_f16(half);
        if (dtype == Dtype::int8) return offset != 0 ? *p - offset : *reinterpret_cast<const int8_t*>(p);
        std::memcpy(&wide, p, 4);
        return wide;
    }
};

void check_stored(Dtype dtype, double actual, double expected, float scale) {
    if (dtype == Dtype::int8)
        CHECK_CLOSE(actual * static_cast<double>(scale), expected, 0.51 * static_cast<double>(scale) + 1e-6);
    else if (dtype == Dtype::f32)
        CHECK_CLOSE(actual, expected, 1e-5);
    else
        CHECK_CLOSE(actual, expected, dtype == Dtype::bf16 ? 1.0 / 256 : 1.0 / 2048, 0.01);
}

void check_rope_and_cache(const Kernels& kernels, const RopeAndCacheCase& p, Random& random) {
    const int width = (p.heads + 2 * p.kv_heads) * p.dim, panels = (p.slots + 15) / 16, blocks = 20;
    const int64_t key_dim = check::round_up(p.dim, std::max(p.pack(), 2)), value_dim = check::round_up(p.dim, 16);
    const int64_t num_slots = int64_t{blocks} * p.kv_heads * panels * 16;
    check::Buffer<uint8_t> keys(num_slots * key_dim * p.size()), values(num_slots * value_dim * p.size());
    std::memset(keys.data(), 0xff, keys.bytes());  // what another sequence left
    check::Buffer<float> key_scales(num_slots), value_scales(num_slots), q_weight(p.dim), k_weight(p.dim), bias(p.dim),
        cos_sin(p.tokens * p.dim);
    for (check::Buffer<float>* buffer : {&q_weight, &k_weight, &bias, &cos_sin}) fill(*buffer, random);
    KvLayer kv{p.dtype, p.kv_heads, p.dim, p.slots, keys.data(), values.data(), key_scales.data(), value_scales.data()};
    FloatRows qkv(p.tokens, width);
    qkv.fill(width, random);
    std::vector<float> before(qkv.data.data(), qkv.data.data() + qkv.data.count());
    std::vector<int64_t> slots;
    for (int t = 0; t < p.tokens; ++t) slots.push_back((t * 7 + 3) % (blocks * p.slots));
    const float* with_bias = p.norm == NormKind::layer ? bias.data() : nullptr;
    kernels.rope_and_cache({qkv.view(), p.heads, p.kv_heads, p.dim, p.norm, q_weight.data(), with_bias, k_weight.data(), with_bias,
                            1e-6f, p.has_rope ? cos_sin.data() : nullptr, &kv, slots.data(), 0, p.tokens});
    for (int t = 0; t < p.tokens; ++t) {
        const float *now = qkv.data.data() + t * qkv.stride, *old = before.data() + t * qkv.stride,
                    *cos_sin_row = cos_sin.data() + t * p.dim;
        for (int h = 0; h < p.heads; ++h) {
            const std::vector<double> expected = p.expected(old + h * p.dim, q_weight, with_bias, cos_sin_row);
            for (int d = 0; d < p.dim; ++d) CHECK_CLOSE(now[h * p.dim + d], expected[static_cast<size_t>(d)], 1e-5);
        }
        for (int h = 0; h < p.kv_heads; ++h) {
            const int64_t slot = slots[static_cast<size_t>(t)] % p.slots;
            const int64_t panel = (slots[static_cast<size_t>(t)] / p.slots * p.kv_heads + h) * panels + slot / 16, lane = slot % 16;
            const std::vector<double> key = p.expected(old + (p.heads + h) * p.dim, k_weight, with_bias, cos_sin_row);
            const float* value = old + (p.heads + p.kv_heads + h) * p.dim;
            for (int64_t d = 0; d < p.dim; ++d) {
                const int64_t at = panel * key_dim * 16 + d / p.pack() * 16 * p.pack() + lane * p.pack() + d % p.pack();
                check_stored(p.dtype, RopeAndCacheCase::stored(p.dtype, keys.data() + at * p.size(), 128),
                             key[static_cast<size_t>(d)], key_scales[panel * 16 + lane]);
                const uint8_t* stored = values.data() + ((panel * 16 + lane) * value_dim + d) * p.size();
                check_stored(p.dtype, RopeAndCacheCase::stored(p.dtype, stored, 0), value[d], value_scales[panel * 16 + lane]);
            }
            for (int64_t d = p.dim; d < key_dim; ++d) {  // padding is zero, since queries are multiplied with it
                const int64_t at = panel * key_dim * 16 + d / p.pack() * 16 * p.pack() + lane * p.pack() + d % p.pack();
                CHECK_CLOSE(RopeAndCacheCase::stored(p.dtype, keys.data() + at * p.size(), 128), 0.0, 0.0);
            }
        }
    }
}

}  // namespace

TEST(rope_and_cache_matches_the_reference) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(24);
        constexpr int kDims[] = {2, 6, 8, 33, 40, 64, 80, 128, 509};
        constexpr int kBlockSizes[] = {1, 5, 16, 48};
        constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8};
        for (int round = 0; round < 108; ++round) {
            RopeAndCacheCase p{};
            p.kv_heads = random.integer(1, 3);
            p.heads = p.kv_heads * random.integer(1, 3);
            p.dim = kDims[round % 9];
            p.slots = kBlockSizes[random.integer(0, 3)];
            p.tokens = 6;
            p.dtype = kDtypes[round % 4];
            p.norm = static_cast<NormKind>(round % 3);
            p.has_rope = p.dim % 2 == 0 && random.coin();
            if (p.dim == 2 && p.norm == NormKind::layer) p.dim = 16;  // layer norm of two numbers suffers from cancellation
            check_rope_and_cache(kernels, p, random);
        }
    });
}
