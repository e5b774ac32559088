// Attention over the pool against a plain loop in double, and bit by bit against itself cut in every other way.
#include "check.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

using namespace hasten;
using check::Random;

namespace {

struct Shape {
    int heads = 4, kv_heads = 2, dim = 64, slots = 16;
    Dtype dtype = Dtype::f32;
    int window = 0;
    float soft_cap = 0.0f;
    bool sinks = false;
};

struct Row {
    int start, tokens;
    bool tree = false;
};

int panels_of(const Shape& shape) { return (shape.slots + 15) / 16; }

// One layer's pool, filled by the definition in kernels.h, beside the same keys and values as doubles.
class Pool {
public:
    Pool(const Shape& shape, int blocks)
        : shape_(shape),
          pack_(shape.dtype == Dtype::int8   ? 4
                : shape.dtype == Dtype::bf16 ? 2
                                             : 1),
          size_(shape.dtype == Dtype::int8  ? 1
                : shape.dtype == Dtype::f32 ? 4
                                            : 2),
          key_dim_(static_cast<int>(check::round_up(shape.dim, pack_))),
          value_dim_(static_cast<int>(check::round_up(shape.dim, 16))),
          places_(int64_t{16} * blocks * shape.kv_heads * panels_of(shape)),
          keys_(places_ * key_dim_ * size_),
          values_(places_ * value_dim_ * size_),
          key_scales_(places_),
          value_scales_(places_) {
        // What nobody wrote must not matter, not even a NaN.
        std::memset(keys_.data(), 0xff, keys_.bytes());
        std::memset(values_.data(), 0xff, values_.bytes());
        std::memset(key_scales_.data(), 0xff, key_scales_.bytes());
        std::memset(value_scales_.data(), 0xff, value_scales_.bytes());
        kv = {shape.dtype,  shape.kv_heads, shape.dim,          shape.slots,
              keys_.data(), values_.data(), key_scales_.data(), value_scales_.data()};
    }

    // Stores the vector and replaces it by what is stored.
    void put(int block, int head, int slot, std::vector<double>& key, std::vector<double>& value) {
        const int64_t panel = (int64_t{block} * shape_.kv_heads + head) * panels_of(shape_) + slot / 16;
        const int lane = slot % 16;
        key_scales_[panel * 16 + lane] = store(
            key, 0.0f,
            [&](int d, int64_t& place) {
                place = panel * key_dim_ * 16 + (d / pack_) * 16 * pack_ + lane * pack_ + d % pack_;
                return keys_.data() + place * size_;
            },
            128);
        value_scales_[panel * 16 + lane] = store(
            value, 0.0f,
            [&](int d, int64_t& place) {
                place = (panel * 16 + lane) * value_dim_ + d;
                return values_.data() + place * size_;
            },
            0);
        for (int d = shape_.dim; d < value_dim_; ++d)
            std::memset(values_.data() + ((panel * 16 + lane) * value_dim_ + d) * size_, 0, size_);
    }

    KvLayer kv;

private:
    template <class Place>
    float store(std::vector<double>& x, float scale, const Place& where, int offset) {
        float absmax = 0.0f;
        for (double v : x) absmax = std::max(absmax, static_cast<float>(std::fabs(v)));
        scale = absmax / 127.0f;
        for (int d = 0; d < shape_.dim; ++d) {
            int64_t place;
            uint8_t* out = where(d, place);
            const float v = static_cast<float>(x[d]);
            if (shape_.dtype == Dtype::f32) {
                std::memcpy(out, &v, 4);
            } else if (shape_.dtype == Dtype::int8) {
                const int q = absmax > 0 ? static_cast<int>(std::nearbyint(v * (127.0f / absmax))) : 0;
                *out = static_cast<uint8_t>(q + offset);
                x[d] = static_cast<double>(scale) * q;
            } else {
                const uint16_t bits = shape_.dtype == Dtype::bf16 ? check::to_bf16(v) : check::to_f16(v);
                std::memcpy(out, &bits, 2);
                x[d] = shape_.dtype == Dtype::bf16 ? check::from_bf16(bits) : check::from_f16(bits);
            }
        }
        return scale;
    }

    Shape shape_;
    int pack_, size_, key_dim_, value_dim_;
    int64_t places_;
    check::Buffer<uint8_t> keys_, values_;
    check::Buffer<float> key_scales_, value_scales_;
};

using Vectors = std::vector<std::vector<double>>;  // [position * kv_heads + head]

struct Problem {
    Shape shape;
    std::vector<Row> rows;
    std::vector<RowSpan> spans;
    std::vector<std::vector<int32_t>> blocks;
    std::vector<std::vector<uint64_t>> trees;
    std::vector<Vectors> keys, values;
    std::vector<float> sinks;
    int tokens = 0, stride;
    std::unique_ptr<Pool> pool;
    std::unique_ptr<check::Buffer<float>> q;

    Problem(const Shape& of, const std::vector<Row>& with, Random& random) : shape(of), rows(with) {
        stride = static_cast<int>(check::round_up((shape.heads + 2 * shape.kv_heads) * shape.dim, 16));
        for (int h = 0; h < shape.heads; ++h) sinks.push_back(random.uniform(-1.0f, 3.0f));
        int total = 0;
        for (const Row& row : rows) total += (row.start + row.tokens - 1) / shape.slots + 1;
        std::vector<int32_t> free(static_cast<size_t>(total + 3));
        std::iota(free.begin(), free.end(), 0);
        for (size_t i = free.size() - 1; i > 0; --i)
            std::swap(free[i], free[static_cast<size_t>(random.integer(0, static_cast<int>(i)))]);
        pool = std::make_unique<Pool>(shape, total + 3);
        for (const Row& row : rows) add_row(row, free, random);
        q = std::make_unique<check::Buffer<float>>(int64_t{tokens} * stride);
        for (int64_t i = 0; i < q->count(); ++i) (*q)[i] = random.normal();
    }

    void add_row(const Row& row, std::vector<int32_t>& free, Random& random) {
        const int end = row.start + row.tokens;
        const int oldest = shape.window > 0 ? std::max(0, row.start - shape.window + 1) : 0;
        const int first_block = random.coin() ? oldest / shape.slots : 0;
        blocks.emplace_back();
        for (int b = first_block; b * shape.slots < end; ++b) {
            blocks.back().push_back(free.back());
            free.pop_back();
        }
        keys.emplace_back();
        values.emplace_back();
        for (int p = 0; p < end; ++p) {
            for (int h = 0; h < shape.kv_heads; ++h) {
                std::vector<double> key, value;
                for (int d = 0; d < shape.dim; ++d) {
                    key.push_back(random.normal());
                    value.push_back(random.normal());
                }
                const int block = p / shape.slots - first_block;
                if (block >= 0) pool->put(blocks.back()[static_cast<size_t>(block)], h, p % shape.slots, key, value);
                keys.back().push_back(key);
                values.back().push_back(value);
            }
        }
        trees.emplace_back();
        for (int i = 0; i < row.tokens && row.tree; ++i) trees.back().push_back(random.bits() & ((uint64_t{2} << i) - 1));
        spans.push_back({tokens, tokens + row.tokens, row.start, first_block, nullptr, nullptr});
        tokens += row.tokens;
    }

    AttentionTask task(const Kernels&, float* out, int out_stride, int threads) {
        for (size_t r = 0; r < rows.size(); ++r) {
            spans[r].blocks = blocks[r].data();
            spans[r].tree = rows[r].tree ? trees[r].data() : nullptr;
        }
        AttentionTask task{};
        task.q = {q->data(), stride};
        task.heads = shape.heads;
        task.kv_heads = shape.kv_heads;
        task.head_dim = shape.dim;
        task.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
        task.soft_cap = shape.soft_cap;
        task.window = shape.window;
        task.sinks = shape.sinks ? sinks.data() : nullptr;
        task.kv = &pool->kv;
        task.rows = spans.data();
        task.num_rows = static_cast<int32_t>(spans.size());
        task.out = {out, out_stride};
        task.num_threads = threads;
        return task;
    }
};

// The plan of a task, with the memory that it points to.
struct Plan {
    Plan(const Kernels& kernels, const AttentionTask& task) : cuts(static_cast<size_t>(task.num_rows)) {
        plan.cuts = cuts.data();
        kernels.plan_attention(task, plan);
    }
    std::vector<RowCut> cuts;
    AttentionPlan plan{};
};

void run(const Kernels& kernels, AttentionTask task, Random& random) {
    const Plan plan(kernels, task);
    check::Buffer<uint8_t> scratch(kAttentionScratch), partials(plan.plan.partial_bytes);
    task.plan = &plan.plan;
    task.partials = partials.data();
    std::vector<int64_t> order(static_cast<size_t>(plan.plan.items));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[static_cast<size_t>(random.integer(0, static_cast<int>(i) - 1))]);
    for (int64_t item : order) {
        std::memset(scratch.data(), 0xff, scratch.bytes());
        kernels.attend(task, item, scratch.data());
    }
    for (int64_t item = plan.plan.merges; item-- > 0;) kernels.merge(task, item);
}

bool sees(const Problem& problem, size_t r, int query, int position) {
    const Row& row = problem.rows[r];
    const int own = row.start + query;
    if (position == own) return true;
    if (problem.shape.window > 0 && position <= own - problem.shape.window) return false;
    if (row.tree && position >= row.start) return (problem.trees[r][static_cast<size_t>(query)] >> (position - row.start) & 1) != 0;
    return position <= own;
}

// The query as int8 keys see it.
std::vector<double> rounded_query(const Problem& problem, const float* q) {
    const int dim = problem.shape.dim;
    std::vector<double> out(q, q + dim);
    if (problem.shape.dtype != Dtype::int8) return out;
    float absmax = 0.0f;
    for (int d = 0; d < dim; ++d) absmax = std::max(absmax, std::fabs(q[d]));
    for (int d = 0; d < dim; ++d) out[static_cast<size_t>(d)] = std::nearbyint(q[d] * (127.0f / absmax)) * (absmax / 127.0f);
    return out;
}

std::vector<double> reference(const Problem& problem, size_t r, int query, int head) {
    const Shape& shape = problem.shape;
    const Row& row = problem.rows[r];
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const float* source = problem.q->data() + int64_t{problem.spans[r].begin + query} * problem.stride + head * shape.dim;
    const std::vector<double> q = rounded_query(problem, source);
    std::vector<double> weights, out(static_cast<size_t>(shape.dim));
    std::vector<size_t> seen;
    for (int p = 0; p < row.start + row.tokens; ++p) {
        if (!sees(problem, r, query, p)) continue;
        const size_t at = static_cast<size_t>(p * shape.kv_heads + kv_head);
        double s = 0.0;
        for (size_t d = 0; d < q.size(); ++d) s += q[d] * problem.keys[r][at][d];
        s /= std::sqrt(static_cast<double>(shape.dim));
        if (shape.soft_cap > 0) s = shape.soft_cap * std::tanh(s / shape.soft_cap);
        seen.push_back(at);
        weights.push_back(s);
    }
    const double sink = problem.sinks[static_cast<size_t>(head)];
    double most = *std::max_element(weights.begin(), weights.end());
    if (shape.sinks) most = std::max(most, sink);
    double total = shape.sinks ? std::exp(sink - most) : 0.0;
    for (double& w : weights) total += w = std::exp(w - most);
    for (size_t i = 0; i < seen.size(); ++i) {
        for (size_t d = 0; d < out.size(); ++d) out[d] += weights[i] / total * problem.values[r][seen[i]][d];
    }
    return out;
}

void check_against_reference(const Kernels& kernels, Problem& problem, int threads, Random& random) {
    const Shape& shape = problem.shape;
    const int width = shape.heads * shape.dim, stride = static_cast<int>(check::round_up(width, 16)) + 16;
    check::Buffer<float> out(int64_t{problem.tokens} * stride);
    std::memset(out.data(), 0xff, out.bytes());
    run(kernels, problem.task(kernels, out.data(), stride, threads), random);
    for (size_t r = 0; r < problem.rows.size(); ++r) {
        for (int query = 0; query < problem.rows[r].tokens; ++query) {
            const float* row = out.data() + int64_t{problem.spans[r].begin + query} * stride;
            for (int head = 0; head < shape.heads; ++head) {
                const std::vector<double> want = reference(problem, r, query, head);
                for (int d = 0; d < shape.dim; ++d) CHECK_CLOSE(row[head * shape.dim + d], want[static_cast<size_t>(d)], 1e-5);
            }
            for (int i = width; i < stride; ++i) CHECK(row[i] == 0.0f);
        }
    }
}

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8};
constexpr int kSlots[] = {1, 5, 16, 48};

std::vector<Row> random_rows(Random& random, int longest) {
    std::vector<Row> rows;
    for (int r = random.integer(1, 4); r > 0; --r) {
        Row row{random.integer(0, longest), random.integer(1, random.coin() ? 1 : 30), false};
        row.tree = random.integer(0, 3) == 0;
        rows.push_back(row);
    }
    return rows;
}

Shape random_shape(Random& random) {
    constexpr int kDims[] = {2, 6, 8, 40, 64, 80, 96, 128, 256};
    constexpr int kGroups[] = {1, 2, 3, 4, 7, 9};
    Shape shape;
    shape.kv_heads = random.integer(1, 3);
    shape.heads = shape.kv_heads * kGroups[random.integer(0, 5)];
    shape.dim = kDims[random.integer(0, 8)];
    shape.slots = kSlots[random.integer(0, 3)];
    shape.dtype = kDtypes[random.integer(0, 3)];
    shape.window = random.coin() ? 0 : random.integer(1, 70);
    shape.soft_cap = random.coin() ? 0.0f : random.uniform(1.0f, 30.0f);
    shape.sinks = random.coin();
    return shape;
}

}  // namespace

TEST(attention_of_random_batches) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(11);
        for (int round = 0; round < 60; ++round) {
            Problem problem(random_shape(random), random_rows(random, 100), random);
            check_against_reference(kernels, problem, random.integer(1, 4), random);
        }
    });
}

TEST(attention_over_several_splits) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(12);
        for (Dtype dtype : kDtypes) {
            for (int slots : kSlots) {
                Shape shape;
                shape.dtype = dtype;
                shape.slots = slots;
                shape.dim = 16;
                shape.window = slots == 48 ? 600 : 0;
                shape.sinks = slots == 5;
                Problem problem(shape, {{1100, 2}, {40, 3}, {1023, 1}, {511, 18}}, random);
                check_against_reference(kernels, problem, slots == 16 ? 1 : 8, random);
            }
        }
    });
}

// Many rows of few queries share items between kv heads: an item then goes from head to head.
TEST(attention_of_many_short_rows) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(15);
        for (int round = 0; round < 16; ++round) {
            Shape shape;
            shape.kv_heads = (round % 4 < 3 ? 4 : 6);
            shape.heads = shape.kv_heads * 2;
            shape.dim = 32;
            shape.dtype = kDtypes[round / 4];
            shape.slots = kSlots[round % 4];
            shape.window = round % 4 == 2 ? 40 : 0;
            std::vector<Row> rows;
            for (int r = 0; r < 24; ++r) rows.push_back({random.integer(0, 80), r == 7 ? 9 : random.integer(1, 3), false});
            Problem problem(shape, rows, random);
            check::Buffer<float> out(int64_t{problem.tokens} * shape.heads * shape.dim);
            const int stride = shape.heads * shape.dim;
            const Plan plan(kernels, problem.task(kernels, out.data(), stride, 1));
            CHECK(plan.plan.items < int64_t{shape.kv_heads} * 24);  // else nothing is shared, and this tests nothing new
            check_against_reference(kernels, problem, 1, random);
        }
    });
}

// Rows alone, with other threads, and prompts in chunks: the same bits, from every instruction set.
TEST(attention_is_invariant) {
    Random random(13);
    for (int round = 0; round < 24; ++round) {
        Shape shape = random_shape(random);
        shape.dtype = kDtypes[round % 4];
        shape.dim = std::min(shape.dim, 80);
        std::vector<Row> rows = random_rows(random, 90);
        rows.push_back({random.integer(500, 1200), random.integer(1, 5), false});
        Problem problem(shape, rows, random);
        const int stride = static_cast<int>(check::round_up(shape.heads * shape.dim, 16));
        check::Buffer<float> want(int64_t{problem.tokens} * stride);
        run(*check::isa(0), problem.task(*check::isa(0), want.data(), stride, 1), random);
        check::for_each_isa([&](const Kernels& kernels) {
            for (int threads : {1, 2, 32}) {
                check::Buffer<float> got(want.count());
                run(kernels, problem.task(kernels, got.data(), stride, threads), random);
                CHECK(got.same(want));
                check::Buffer<float> alone(want.count());
                AttentionTask task = problem.task(kernels, alone.data(), stride, threads);
                for (size_t r = 0; r < rows.size(); ++r) {
                    task.rows = problem.spans.data() + r;
                    task.num_rows = 1;
                    run(kernels, task, random);
                }
                CHECK(alone.same(want));
            }
            check::Buffer<float> chunked(want.count());
            AttentionTask task = problem.task(kernels, chunked.data(), stride, 2);
            for (size_t r = 0; r < rows.size(); ++r) {
                RowSpan piece = problem.spans[r];
                for (int begin = piece.begin, start = piece.start, end = piece.end; begin < end;) {
                    const int tokens = rows[r].tree ? end - begin : random.integer(1, end - begin);
                    piece.begin = begin;
                    piece.end = begin + tokens;
                    piece.start = start;
                    task.rows = &piece;
                    task.num_rows = 1;
                    run(kernels, task, random);
                    begin += tokens;
                    start += tokens;
                }
            }
            CHECK(chunked.same(want));
        });
    }
}

// A long decode step of one kv head is cut for many threads; a short one is not.
TEST(attention_is_cut_for_threads) {
    check::for_each_isa([](const Kernels& kernels) {
        Random random(14);
        Shape shape;
        shape.heads = 2;
        shape.kv_heads = 1;
        shape.dim = 16;
        Problem problem(shape, {{4000, 1}}, random);
        check::Buffer<float> out(32);
        const AttentionPlan cut = Plan(kernels, problem.task(kernels, out.data(), 32, 8)).plan;
        CHECK(cut.items == 8);
        CHECK(cut.merges == 1);
        Problem brief(shape, {{400, 1}}, random);
        const AttentionPlan whole = Plan(kernels, brief.task(kernels, out.data(), 32, 8)).plan;
        CHECK(whole.items == 1);
        CHECK(whole.merges == 0);
    });
}
