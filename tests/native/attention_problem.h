// A random attention step, its reference result by a plain loop in double, and the loops that run it.
#pragma once

#include "test_harness.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

namespace check {

using namespace hasten;

struct Shape {
    int heads = 4, kv_heads = 2, dim = 64, block_size = 16;
    Dtype dtype = Dtype::f32;
    int window = 0;
    float soft_cap = 0.0f;
    bool sinks = false;
    bool allow_bf16 = true;  // has an effect with AMX tiles only
};

struct Sequence {
    int start, tokens;
    bool tree = false;  // a draft tree of at most 64 tokens
};

inline int panels_of(const Shape& shape) { return (shape.block_size + 15) / 16; }

// The pool of one layer, filled as documented in kernels.h, beside the same keys and values as doubles.
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
          key_dim_(static_cast<int>(round_up(shape.dim, std::max(pack_, 2)))),
          value_dim_(static_cast<int>(round_up(shape.dim, 16))),
          num_slots_(int64_t{16} * blocks * shape.kv_heads * panels_of(shape)),
          keys_(num_slots_ * key_dim_ * size_),
          values_(num_slots_ * value_dim_ * size_),
          key_scales_(num_slots_),
          value_scales_(num_slots_) {
        // Unwritten slots must not affect a result, even if they hold NaN.
        std::memset(keys_.data(), 0xff, keys_.bytes());
        std::memset(values_.data(), 0xff, values_.bytes());
        std::memset(key_scales_.data(), 0xff, key_scales_.bytes());
        std::memset(value_scales_.data(), 0xff, value_scales_.bytes());
        kv = {shape.dtype,  shape.kv_heads, shape.dim,          shape.block_size,
              keys_.data(), values_.data(), key_scales_.data(), value_scales_.data()};
    }

    // Stores the vectors and replaces them by their stored values.
    void write(int block, int head, int slot, std::vector<double>& key, std::vector<double>& value) {
        const int64_t panel = (int64_t{block} * shape_.kv_heads + head) * panels_of(shape_) + slot / 16;
        const int lane = slot % 16;
        key_scales_[panel * 16 + lane] = store(
            key, 0.0f,
            [&](int d, int64_t& index) {
                index = panel * key_dim_ * 16 + (d / pack_) * 16 * pack_ + lane * pack_ + d % pack_;
                return keys_.data() + index * size_;
            },
            128);
        value_scales_[panel * 16 + lane] = store(
            value, 0.0f,
            [&](int d, int64_t& index) {
                index = (panel * 16 + lane) * value_dim_ + d;
                return values_.data() + index * size_;
            },
            0);
        for (int d = shape_.dim; d < key_dim_ && shape_.dtype != Dtype::int8; ++d) {
            const int64_t index = panel * key_dim_ * 16 + d / pack_ * 16 * pack_ + lane * pack_ + d % pack_;
            std::memset(keys_.data() + index * size_, 0, size_);
        }
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
            int64_t index;
            uint8_t* out = where(d, index);
            const float v = static_cast<float>(x[d]);
            if (shape_.dtype == Dtype::f32) {
                std::memcpy(out, &v, 4);
            } else if (shape_.dtype == Dtype::int8) {
                const int q = absmax > 0 ? static_cast<int>(std::nearbyint(v * (127.0f / absmax))) : 0;
                *out = static_cast<uint8_t>(q + offset);
                x[d] = static_cast<double>(scale) * q;
            } else {
                const uint16_t bits = shape_.dtype == Dtype::bf16 ? to_bf16(v) : to_f16(v);
                std::memcpy(out, &bits, 2);
                x[d] = shape_.dtype == Dtype::bf16 ? from_bf16(bits) : from_f16(bits);
            }
        }
        return scale;
    }

    Shape shape_;
    int pack_, size_, key_dim_, value_dim_;
    int64_t num_slots_;
    Buffer<uint8_t> keys_, values_;
    Buffer<float> key_scales_, value_scales_;
};

using Vectors = std::vector<std::vector<double>>;  // [position * kv_heads + head]

// The parent of each token; -1: the last token before the sequence. The tree has a trunk of a few tokens, then random branches.
inline std::vector<int> random_tree(int tokens, Random& random) {
    std::vector<int> parents{-1};
    const int trunk = random.integer(1, std::min(tokens, 3));
    while (static_cast<int>(parents.size()) < tokens) {
        const int next = static_cast<int>(parents.size());
        parents.push_back(next < trunk ? next - 1 : random.integer(trunk - 1, next - 1));
    }
    return parents;
}

struct Problem {
    Shape shape;
    std::vector<Sequence> sequences;
    std::vector<SequenceSpan> spans;
    std::vector<std::vector<int32_t>> blocks;
    std::vector<std::vector<int>> parents;  // of draft trees
    std::vector<std::vector<uint64_t>> tree_masks;
    std::vector<Vectors> keys, values;  // by slot, as stored
    std::vector<Vectors> input_keys, input_values;
    std::vector<float> sinks;
    int tokens = 0, stride;
    std::unique_ptr<Pool> pool;
    std::unique_ptr<Buffer<float>> q;

    Problem(const Shape& of, const std::vector<Sequence>& with, Random& random) : shape(of), sequences(with) {
        for (int h = 0; h < shape.heads; ++h) sinks.push_back(random.uniform(-1.0f, 3.0f));
        for (const Sequence& sequence : sequences) {
            input_keys.push_back(random_vectors(sequence, random));
            input_values.push_back(random_vectors(sequence, random));
            parents.push_back(sequence.tree ? random_tree(sequence.tokens, random) : std::vector<int>{});
        }
        fill(random);
        for (int64_t i = 0; i < q->count(); ++i) (*q)[i] = random.normal();
    }

    // The path to one token of a draft tree, as a plain sequence in other blocks.
    Problem(const Problem& tree, size_t r, int query, Random& random) : shape(tree.shape), sinks(tree.sinks) {
        const std::vector<int> path = tree.path(r, query);
        const int start = tree.sequences[r].start, heads = shape.kv_heads;
        sequences.push_back({start, static_cast<int>(path.size())});
        const auto along_path = [&](const Vectors& vectors) {
            Vectors out(vectors.begin(), vectors.begin() + start * heads);
            for (const int token : path) {
                const auto at = vectors.begin() + (start + token) * heads;
                out.insert(out.end(), at, at + heads);
            }
            return out;
        };
        input_keys.push_back(along_path(tree.input_keys[r]));
        input_values.push_back(along_path(tree.input_values[r]));
        parents.emplace_back();
        fill(random);
        for (size_t i = 0; i < path.size(); ++i) {
            const float* from = tree.q->data() + int64_t{tree.spans[r].begin + path[i]} * stride;
            std::memcpy(q->data() + static_cast<int64_t>(i) * stride, from, static_cast<size_t>(stride) * sizeof(float));
        }
    }

    // The ancestors of token `query` of sequence r and the token itself, in order.
    std::vector<int> path(size_t r, int query) const {
        std::vector<int> found;
        for (int token = query; token >= 0; token = sequences[r].tree ? parents[r][static_cast<size_t>(token)] : token - 1)
            found.insert(found.begin(), token);
        return found;
    }

    AttentionTask task(const Kernels&, float* out, int out_stride, int threads) {
        for (size_t r = 0; r < sequences.size(); ++r) {
            spans[r].block_table = blocks[r].data();
            spans[r].tree_mask = sequences[r].tree ? tree_masks[r].data() : nullptr;
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
        task.allow_bf16 = shape.allow_bf16;
        task.sequences = spans.data();
        task.num_sequences = static_cast<int32_t>(spans.size());
        task.out = {out, out_stride};
        task.num_threads = threads;
        return task;
    }

private:
    Vectors random_vectors(const Sequence& sequence, Random& random) const {
        Vectors vectors(static_cast<size_t>((sequence.start + sequence.tokens) * shape.kv_heads));
        for (auto& vector : vectors) {
            for (int d = 0; d < shape.dim; ++d) vector.push_back(random.normal());
        }
        return vectors;
    }

    void fill(Random& random) {
        stride = static_cast<int>(round_up((shape.heads + 2 * shape.kv_heads) * shape.dim, 16));
        int num_blocks = 0;
        for (const Sequence& sequence : sequences) num_blocks += (sequence.start + sequence.tokens - 1) / shape.block_size + 1;
        std::vector<int32_t> free_blocks(static_cast<size_t>(num_blocks + 3));
        std::iota(free_blocks.begin(), free_blocks.end(), 0);
        for (size_t i = free_blocks.size() - 1; i > 0; --i)
            std::swap(free_blocks[i], free_blocks[static_cast<size_t>(random.integer(0, static_cast<int>(i)))]);
        pool = std::make_unique<Pool>(shape, num_blocks + 3);
        for (size_t r = 0; r < sequences.size(); ++r) add_sequence(r, free_blocks, random);
        q = std::make_unique<Buffer<float>>(int64_t{tokens} * stride);
    }

    void add_sequence(size_t r, std::vector<int32_t>& free_blocks, Random& random) {
        const Sequence& sequence = sequences[r];
        const int end = sequence.start + sequence.tokens;
        const int oldest = shape.window > 0 ? std::max(0, sequence.start - shape.window + 1) : 0;
        const int first_block = random.coin() ? oldest / shape.block_size : 0;
        blocks.emplace_back();
        for (int b = first_block; b * shape.block_size < end; ++b) {
            blocks.back().push_back(free_blocks.back());
            free_blocks.pop_back();
        }
        keys.push_back(input_keys[r]);
        values.push_back(input_values[r]);
        for (int p = first_block * shape.block_size; p < end; ++p) {
            const int block = blocks.back()[static_cast<size_t>(p / shape.block_size - first_block)];
            for (int h = 0; h < shape.kv_heads; ++h) {
                const auto at = static_cast<size_t>(p * shape.kv_heads + h);
                pool->write(block, h, p % shape.block_size, keys.back()[at], values.back()[at]);
            }
        }
        tree_masks.emplace_back();
        for (int i = 0; i < sequence.tokens && sequence.tree; ++i) {
            uint64_t visible = 0;
            for (const int token : path(r, i)) visible |= uint64_t{1} << token;
            tree_masks.back().push_back(visible);
        }
        spans.push_back({tokens, tokens + sequence.tokens, sequence.start, first_block, nullptr, nullptr});
        tokens += sequence.tokens;
    }
};

// The plan of a task and the memory of its partitions.
struct Plan {
    Plan(const Kernels& kernels, const AttentionTask& task) : partitions(static_cast<size_t>(task.num_sequences)) {
        plan.partitions = partitions.data();
        kernels.plan_attention(task, plan);
    }
    std::vector<SequencePartition> partitions;
    AttentionPlan plan{};
};

inline void run(const Kernels& kernels, AttentionTask task, Random& random) {
    const Plan plan(kernels, task);
    Buffer<uint8_t> scratch(kAttentionScratch), partials(plan.plan.partial_bytes);
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
    for (int64_t item = plan.plan.merges; item-- > 0;) kernels.merge_splits(task, item);
}

// The positions that a token of sequence r attends to.
inline std::vector<int> visible_positions(const Problem& problem, size_t r, int query) {
    const int position = problem.sequences[r].start + static_cast<int>(problem.path(r, query).size()) - 1;
    const int first = problem.shape.window > 0 ? std::max(0, position - problem.shape.window + 1) : 0;
    std::vector<int> positions(static_cast<size_t>(position - first + 1));
    std::iota(positions.begin(), positions.end(), first);
    return positions;
}

// The slots of the tokens at these positions.
inline std::vector<int> visible_slots(const Problem& problem, size_t r, int query) {
    const std::vector<int> path = problem.path(r, query);
    const int start = problem.sequences[r].start;
    std::vector<int> slots = visible_positions(problem, r, query);
    for (int& p : slots) {
        if (p >= start) p = start + path[static_cast<size_t>(p - start)];
    }
    return slots;
}

// Whether this many tokens of a sequence have bf16 queries and weights (attention_amx.h).
inline bool uses_bf16_tiles(const Kernels& kernels, const Shape& shape, const Sequence& sequence, int tokens) {
    return shape.allow_bf16 && std::strcmp(kernels.name, "amx") == 0 && shape.dtype == Dtype::bf16 && !sequence.tree &&
           shape.dim <= 256 && tokens * (shape.heads / shape.kv_heads) > 24;
}

// The query as rounded for int8 keys or for bf16 tiles.
inline std::vector<double> rounded_query(const Problem& problem, const float* q, bool tiles) {
    const int dim = problem.shape.dim;
    std::vector<double> out(q, q + dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (double& x : out) {
        if (tiles) x = from_bf16(to_bf16(static_cast<float>(x) * scale)) / scale;
    }
    if (problem.shape.dtype != Dtype::int8) return out;
    float absmax = 0.0f;
    for (int d = 0; d < dim; ++d) absmax = std::max(absmax, std::fabs(q[d]));
    for (int d = 0; d < dim; ++d) out[static_cast<size_t>(d)] = std::nearbyint(q[d] * (127.0f / absmax)) * (absmax / 127.0f);
    return out;
}

// The split of a position: 32 panels each (attention_plan.h).
inline int split_of(const Shape& shape, int position) {
    return (position / shape.block_size * panels_of(shape) + position % shape.block_size / 16) / 32;
}

// Error bound of int8 values: half a quantisation step of the split for each weight, times the largest value.
inline double fixed_point_error(const Problem& problem, size_t r, const std::vector<int>& positions,
                                const std::vector<size_t>& visible, const std::vector<double>& weights) {
    std::vector<double> steps;
    double error = 0.0;
    for (size_t i = 0; i < visible.size(); ++i) {
        const size_t split = static_cast<size_t>(split_of(problem.shape, positions[i]));
        if (steps.size() <= split) steps.resize(split + 1);
        double scale = 0.0;
        for (double v : problem.values[r][visible[i]]) scale = std::max(scale, std::fabs(v) / 127.0);
        steps[split] = std::max(steps[split], weights[i] * scale / 32767.0);
    }
    for (const int position : positions) error += 0.5 * 127.0 * steps[static_cast<size_t>(split_of(problem.shape, position))];
    return error;
}

// The result of one query and head, and its error bound.
struct Reference {
    std::vector<double> values;
    double error;
};

inline Reference reference(const Problem& problem, size_t r, int query, int head, bool tiles) {
    const Shape& shape = problem.shape;
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const float* source = problem.q->data() + int64_t{problem.spans[r].begin + query} * problem.stride + head * shape.dim;
    const std::vector<double> q = rounded_query(problem, source, tiles);
    std::vector<double> weights, out(static_cast<size_t>(shape.dim));
    std::vector<size_t> visible;
    for (const int p : visible_slots(problem, r, query)) {
        const size_t at = static_cast<size_t>(p * shape.kv_heads + kv_head);
        double s = 0.0;
        for (size_t d = 0; d < q.size(); ++d) s += q[d] * problem.keys[r][at][d];
        s /= std::sqrt(static_cast<double>(shape.dim));
        if (shape.soft_cap > 0) s = shape.soft_cap * std::tanh(s / shape.soft_cap);
        visible.push_back(at);
        weights.push_back(s);
    }
    const double sink = problem.sinks[static_cast<size_t>(head)];
    double max_score = *std::max_element(weights.begin(), weights.end());
    if (shape.sinks) max_score = std::max(max_score, sink);
    double sum = shape.sinks ? std::exp(sink - max_score) : 0.0;
    for (double& w : weights) sum += w = std::exp(w - max_score);
    for (double& w : weights) w /= sum;
    for (size_t i = 0; i < visible.size(); ++i) {
        for (size_t d = 0; d < out.size(); ++d) out[d] += weights[i] * problem.values[r][visible[i]][d];
    }
    double rounding = 1e-5, size = 0.0;
    for (size_t i = 0; i < visible.size(); ++i) {
        double largest = 0.0;
        for (const double v : problem.values[r][visible[i]]) largest = std::max(largest, std::fabs(v));
        size += weights[i] * largest;
    }
    if (tiles) rounding += size / 512;  // half a unit of bf16 for each weight
    if (shape.dtype != Dtype::int8) return {out, rounding};
    return {out, rounding + fixed_point_error(problem, r, visible_positions(problem, r, query), visible, weights)};
}

inline void check_against_reference(const Kernels& kernels, Problem& problem, int threads, Random& random) {
    const Shape& shape = problem.shape;
    const int width = shape.heads * shape.dim, stride = static_cast<int>(round_up(width, 16)) + 16;
    Buffer<float> out(int64_t{problem.tokens} * stride);
    std::memset(out.data(), 0xff, out.bytes());
    run(kernels, problem.task(kernels, out.data(), stride, threads), random);
    for (size_t r = 0; r < problem.sequences.size(); ++r) {
        const bool tiles = uses_bf16_tiles(kernels, shape, problem.sequences[r], problem.sequences[r].tokens);
        for (int query = 0; query < problem.sequences[r].tokens; ++query) {
            const float* row = out.data() + int64_t{problem.spans[r].begin + query} * stride;
            for (int head = 0; head < shape.heads; ++head) {
                const Reference expected = reference(problem, r, query, head, tiles);
                for (int d = 0; d < shape.dim; ++d)
                    CHECK_CLOSE(row[head * shape.dim + d], expected.values[static_cast<size_t>(d)], expected.error);
            }
            for (int i = width; i < stride; ++i) CHECK(row[i] == 0.0f);
        }
    }
}

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8};
constexpr int kBlockSizes[] = {1, 5, 16, 48};

inline std::vector<Sequence> random_sequences(Random& random, int max_length) {
    std::vector<Sequence> sequences;
    for (int r = random.integer(1, 4); r > 0; --r) {
        Sequence sequence{random.integer(0, max_length), random.integer(1, random.coin() ? 1 : 30), false};
        sequence.tree = random.integer(0, 3) == 0;
        sequences.push_back(sequence);
    }
    return sequences;
}

inline Shape random_shape(Random& random) {
    constexpr int kDims[] = {2, 6, 8, 40, 64, 80, 96, 128, 256};
    constexpr int kGroups[] = {1, 2, 3, 4, 7, 9};
    Shape shape;
    shape.kv_heads = random.integer(1, 3);
    shape.heads = shape.kv_heads * kGroups[random.integer(0, 5)];
    shape.dim = kDims[random.integer(0, 8)];
    shape.block_size = kBlockSizes[random.integer(0, 3)];
    shape.dtype = kDtypes[random.integer(0, 3)];
    shape.window = random.coin() ? 0 : random.integer(1, 70);
    shape.soft_cap = random.coin() ? 0.0f : random.uniform(1.0f, 30.0f);
    shape.sinks = random.coin();
    shape.allow_bf16 = random.coin();
    return shape;
}

}  // namespace check
