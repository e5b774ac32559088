// Choosing among logits, against std::stable_sort and sums in double.
#include "check.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

using namespace hasten;
using check::Random;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Indices from the greatest to the least value, equals by index, NaNs at the end.
std::vector<int32_t> ranked(const check::Buffer<float>& values) {
    std::vector<int32_t> order(static_cast<size_t>(values.count()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        if (std::isnan(values[a]) || std::isnan(values[b])) return !std::isnan(values[a]) && std::isnan(values[b]);
        return values[a] > values[b];
    });
    return order;
}

// Kinds: plain, many equals, rising (every value is a new maximum), with NaNs and infinities, nothing but NaNs,
// NaNs and then numbers.
void fill(check::Buffer<float>& values, int kind, Random& random) {
    for (int64_t i = 0; i < values.count(); ++i) {
        values[i] = random.normal() * 5.0f;
        if (kind == 1) values[i] = static_cast<float>(random.integer(-2, 2)) * (random.coin() ? 1.0f : -1.0f);
        if (kind == 2) values[i] = static_cast<float>(i);
        if (kind == 3 && random.integer(0, 2) == 0) values[i] = random.coin() ? kNan : -kInf;
        if (kind == 4 || (kind == 5 && i < 3000)) values[i] = kNan;
    }
}

void check_ranks(const Kernels& kernels, const check::Buffer<float>& values, int64_t k) {
    const std::vector<int32_t> want = ranked(values);
    check::Buffer<uint8_t> scratch(8 * values.count());
    check::Buffer<float> top_values(k);
    check::Buffer<int32_t> top_ids(k);
    const int64_t found = kernels.top_k(values.data(), values.count(), k, top_values.data(), top_ids.data(), scratch.data());
    CHECK(found == std::min(k, values.count()));
    for (int64_t i = 0; i < found; ++i) {
        const int32_t id = want[static_cast<size_t>(i)];
        CHECK(top_ids[i] == id);
        CHECK(std::memcmp(&top_values[i], &values[id], 4) == 0);
    }
    CHECK(kernels.argmax(values.data(), values.count()) == want[0]);
}

}  // namespace

TEST(top_k_and_argmax_rank_as_a_stable_sort) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(31);
        for (int round = 0; round < 150; ++round) {
            check::Buffer<float> values(random.integer(1, round % 7 == 0 ? 9000 : 300));
            fill(values, round % 6, random);
            check_ranks(kernels, values, random.integer(1, static_cast<int>(values.count()) + 2));
            check_ranks(kernels, values, random.integer(1, 8));
        }
        check::Buffer<float> logits(151936);
        fill(logits, 0, random);
        for (int64_t k : {1, 50, 3000}) check_ranks(kernels, logits, k);
        fill(logits, 2, random);
        check_ranks(kernels, logits, 50);
    });
}

TEST(argmax_of_infinities) {
    check::for_each_isa([](const Kernels& kernels) {
        check::Buffer<float> values(2100);
        for (int64_t i = 0; i < values.count(); ++i) values[i] = i < 2050 ? kNan : -kInf;
        CHECK(kernels.argmax(values.data(), values.count()) == 2050);
        values[2077] = kInf;
        CHECK(kernels.argmax(values.data(), values.count()) == 2077);
    });
}

TEST(log_sum_exp_of_logits) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(32);
        for (int64_t count : {1, 15, 16, 17, 1000, 1024, 5000, 151936}) {
            check::Buffer<float> values(count);
            fill(values, count == 1000 ? 1 : 0, random);
            double most = -kInf, total = 0.0;
            for (int64_t i = 0; i < count; ++i) most = std::max(most, static_cast<double>(values[i]));
            for (int64_t i = 0; i < count; ++i) total += std::exp(values[i] - most);
            CHECK_CLOSE(kernels.log_sum_exp(values.data(), count), most + std::log(total), 2e-7);
            values[count / 2] = -kInf;
            CHECK(std::isinf(kernels.log_sum_exp(values.data(), count)) == (count == 1));
            values[count / 2] = kInf;
            CHECK(kernels.log_sum_exp(values.data(), count) == kInf);
            values[count / 3] = kNan;
            CHECK(std::isnan(kernels.log_sum_exp(values.data(), count)));
        }
    });
}
