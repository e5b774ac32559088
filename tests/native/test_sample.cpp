// The sampling kernel against a plain definition in double: a sort, sums from the least likely token up, and the noise of all
// tokens.
#include "test_harness.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

using namespace hasten;
using check::Random;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kUnwritten = -7;

uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double noise(const SampleTask& task, int64_t token) {
    const uint64_t seeded = mix(task.seed + 0x9e3779b97f4a7c15u);
    const uint64_t of_sequence = mix(seeded + (task.sequence + 1) * 0xc13fa9a902a6328fu);
    const uint64_t stream = mix(of_sequence + (task.position + 1) * 0xd1b54a32d192ed03u);
    const uint64_t bits = mix(stream + static_cast<uint64_t>(token + 1) * 0x9e3779b97f4a7c15u) >> 12;
    return -std::log(-std::log((static_cast<double>(bits) + 0.5) * 0x1p-52));
}

// The token that the definition samples. `ambiguous`: a number is so close to a threshold that rounding to float may decide.
int32_t reference(const SampleTask& task, bool& ambiguous) {
    std::vector<int32_t> kept(static_cast<size_t>(task.vocab_size));
    std::vector<float> value(kept.size());
    std::iota(kept.begin(), kept.end(), 0);
    const auto at = [&](int32_t token) { return static_cast<double>(value[static_cast<size_t>(token)]); };
    const auto drop = [&](auto excluded) { kept.erase(std::remove_if(kept.begin(), kept.end(), excluded), kept.end()); };
    for (size_t i = 0; i < kept.size(); ++i) value[i] = task.logits[i] / (task.temperature > 0 ? task.temperature : 1.0f);
    std::stable_sort(kept.begin(), kept.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
    if (task.temperature == 0.0f) return kept[0];
    const double top = at(kept[0]);
    if (task.top_k > 0 && task.top_k < task.vocab_size) {
        const double last = at(kept[static_cast<size_t>(task.top_k) - 1]);
        drop([&](int32_t token) { return at(token) < last; });
    }
    if (task.tail_mass > 0) {
        double total = 0.0, tail_sum = 0.0;
        for (int32_t token : kept) total += std::exp(at(token) - top);
        size_t size = kept.size();
        for (; size > 1; --size) {
            tail_sum += std::exp(at(kept[size - 1]) - top) / total;
            ambiguous = ambiguous || std::fabs(tail_sum - static_cast<double>(task.tail_mass)) < 1e-4 * tail_sum;
            if (tail_sum > static_cast<double>(task.tail_mass)) break;
        }
        ambiguous = ambiguous || (size < kept.size() && at(kept[size]) == at(kept[size - 1]));
        kept.resize(size);
    }
    if (task.min_p > 0) {
        const auto ratio = [&](int32_t token) { return std::exp(at(token) - top) / static_cast<double>(task.min_p); };
        for (int32_t token : kept) ambiguous = ambiguous || std::fabs(ratio(token) - 1.0) < 1e-4;
        drop([&](int32_t token) { return ratio(token) < 1.0; });
    }
    std::vector<double> sum(kept.size());
    std::transform(kept.begin(), kept.end(), sum.begin(), [&](int32_t token) { return at(token) + noise(task, token); });
    return kept[static_cast<size_t>(std::max_element(sum.begin(), sum.end()) - sum.begin())];
}

// Kinds: plain, peaked, flat, of few distinct values, mostly -inf, all equal.
void fill(check::Buffer<float>& logits, int kind, Random& random) {
    for (int64_t i = 0; i < logits.count(); ++i) {
        logits[i] = random.normal() * (kind == 2 ? 0.05f : 2.5f);
        if (kind == 1 && i % 61 == 0) logits[i] += random.uniform(5.0f, 15.0f);
        if (kind == 3) logits[i] = std::round(logits[i] * 2.0f) * 0.5f;
        if (kind == 4 && random.integer(0, 9) > 0) logits[i] = -kInf;
        if (kind == 5) logits[i] = 1.5f;
    }
    if (kind == 4) logits[logits.count() / 2] = 1.0f;
}

SampleTask random_task(const check::Buffer<float>& logits, Random& random) {
    const float temperatures[] = {0.0f, 1.0f, 0.7f, 0.2f, 1.8f, random.uniform(0.05f, 3.0f)};
    const float tail_masses[] = {0.99f, 0.5f, 0.1f, 0.05f, 0.001f};
    const float min_ps[] = {0.3f, 0.05f, 0.001f};
    SampleTask task{logits.data(), logits.count(), temperatures[random.integer(0, 5)], 0.0f, 0.0f, 0, random.bits() >> 1, 0, 0};
    if (random.coin()) task.tail_mass = tail_masses[random.integer(0, 4)];
    if (random.coin()) task.min_p = min_ps[random.integer(0, 2)];
    if (random.coin()) task.top_k = random.coin() ? random.integer(1, 60) : random.integer(1, 1100);
    task.sequence = static_cast<uint64_t>(random.integer(0, 3));
    task.position = static_cast<uint64_t>(random.integer(0, 5000));
    return task;
}

constexpr int kSizes[] = {1, 7, 16, 17, 63, 100, 257, 1000, 4099, 8192};

}  // namespace

TEST(sample_matches_the_reference) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(41);
        int num_decided = 0, num_clear = 0;
        for (int round = 0; round < 900; ++round) {
            const int kind = round % 6;
            check::Buffer<float> logits(kSizes[random.integer(0, 9)]);
            fill(logits, kind, random);
            const SampleTask task = random_task(logits, random);
            int32_t token = kUnwritten;
            const bool decided = kernels.sample(task, &token);
            bool ambiguous = false;
            const int32_t expected = reference(task, ambiguous);
            if (decided) CHECK(token == expected);
            if (!decided) CHECK(token == kUnwritten);
            num_clear += kind < 2 && !ambiguous && logits.count() > 100;
            num_decided += kind < 2 && !ambiguous && logits.count() > 100 && decided;
        }
        CHECK(num_decided > num_clear * 95 / 100);
    });
}

TEST(sample_leaves_non_finite_rows_undecided) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(42);
        for (int round = 0; round < 300; ++round) {
            check::Buffer<float> logits(kSizes[random.integer(0, 9)]);
            fill(logits, 0, random);
            const float non_finite = round % 2 == 0 ? kNan : kInf;
            logits[random.integer(0, static_cast<int>(logits.count()) - 1)] = non_finite;
            if (round % 3 == 0) {
                for (int64_t i = 0; i < logits.count(); ++i) logits[i] = round % 2 == 0 ? kNan : -kInf;
            }
            int32_t token = kUnwritten;
            CHECK(!kernels.sample(random_task(logits, random), &token) && token == kUnwritten);
        }
    });
}

// Logits that bring the sums of two tokens as close as floats allow, and nearly as close.
TEST(sample_leaves_near_ties_undecided) {
    check::for_each_isa([](const Kernels& kernels) {
        int num_close = 0;
        for (uint64_t seed = 0; seed < 600; ++seed) {
            check::Buffer<float> logits(64);
            for (int64_t i = 0; i < 64; ++i) logits[i] = -kInf;
            SampleTask task{logits.data(), 64, 1.0f, 0.0f, 0.0f, seed % 2 == 0 ? 40 : 0, seed, 0, 9};
            const int64_t a = 3, b = 50;
            logits[a] = 0.0f;
            logits[b] = static_cast<float>(noise(task, a) - noise(task, b));
            const double gap = noise(task, a) - (noise(task, b) + static_cast<double>(logits[b]));
            int32_t token = kUnwritten;
            const bool decided = kernels.sample(task, &token);
            if (decided) CHECK(token == (gap > 0.0 ? a : b));
            if (std::fabs(gap) < 9e-11) CHECK(!decided);
            if (std::fabs(gap) > 2e-10) CHECK(decided);
            num_close += std::fabs(gap) < 9e-11;
        }
        CHECK(num_close > 0);
    });
}

TEST(sample_takes_the_lowest_of_equal_logits_when_greedy) {
    check::for_each_isa([](const Kernels& kernels) {
        for (int64_t count : {33, 8192}) {
            check::Buffer<float> logits(count);
            const SampleTask task{logits.data(), count, 0.0f, 0.0f, 0.0f, 0, 0, 0, 0};
            int32_t token = kUnwritten;
            CHECK(kernels.sample(task, &token) && token == 0);
            logits[count - 1] = logits[count - 2] = logits[20] = 2.0f;
            CHECK(kernels.sample(task, &token) && token == 20);
            logits[count - 1] = 3.0f;
            CHECK(kernels.sample(task, &token) && token == count - 1);
        }
    });
}
