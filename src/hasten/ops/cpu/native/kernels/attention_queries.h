// The queries of one work item: visible keys, and their layouts for the score kernels.
#pragma once

#include "attention_softmax.h"
#include "rope_and_cache.h"

namespace hasten::HASTEN_ISA {

constexpr int kPrefetchQueries = 4;  // between the query that is read or written and the one that is prefetched

class ItemQueries {
public:
    ItemQueries(const AttentionShape& shape, const WorkItem& item) : shape_(shape), item_(item) {
        first_query_ = item.tile * kItemQueries;
        const int64_t remaining = item.partition->queries - first_query_;
        count_ = static_cast<int>(remaining < kItemQueries ? remaining : kItemQueries);
        first_key_ = visible(0).first;
        key_end_ = visible(count_ - 1).end;
        for (int i = 0; i < count_ && has_tree(); ++i) {
            first_key_ = min_of(first_key_, visible(i).first);
            key_end_ = max_of(key_end_, visible(i).end);
        }
    }

    int count() const { return count_; }

    // Prefetch query i, or its output row: they are far apart in memory.
    void prefetch_query(int i) const { prefetch_head(i < count_ ? query_ptr(i) : nullptr, false); }
    void prefetch_output(int i) const { prefetch_head(i < count_ ? output_ptr(i) : nullptr, true); }
    int64_t query_index(int i) const { return first_query_ + i; }  // among the queries of the sequence and KV head
    int64_t first_key() const { return first_key_; }               // visible keys of all queries are in [first_key, key_end)
    int64_t key_end() const { return key_end_; }
    int64_t split_begin() const { return max_of(item_.split_begin, shape_.split_of(first_key_)); }
    int64_t split_end() const { return min_of(item_.split_end, shape_.split_of(key_end_ - 1) + 1); }

    bool has_tree() const { return item_.sequence->tree_mask != nullptr; }
    uint64_t tree_mask(int i) const {
        return item_.sequence->tree_mask[token(i)];
    }  // of a draft tree: the visible tokens of the sequence

    // Visible positions, in whichever slots their tokens are.
    VisibleRange visible(int i) const {
        const SequenceSpan& sequence = *item_.sequence;
        const int64_t position = sequence.start + (has_tree() ? __builtin_popcountll(tree_mask(i)) - 1 : token(i));
        return {shape_.first_visible(sequence, position), position + 1};
    }

    // Loads scaled queries as tiles [dim'][m], where dim' is the padded dimension of the keys, with zeros in the rest of the last
    // tile.
    void load(int m, float* tiles) const {
        const int32_t dim = shape_.task.head_dim, key_dim = shape_.layout.key_dim;
        for (int i = 0; i < padded_count(m); ++i) {
            float* out = tile(tiles, i, m);
            if (i >= count_) {
                for (int32_t k = 0; k < key_dim; ++k) out[k * m] = 0.0f;
                continue;
            }
            const float* q = query_ptr(i);
            for (int32_t k = 0; k < dim; ++k) out[k * m] = q[k] * shape_.task.scale;
            if (key_dim > dim) out[dim * m] = 0.0f;
        }
    }

    // Loads quantised queries as tiles [dim' / 4][m] of packed quads, where dim' is the padded dimension of the keys.
    void load_int8(int m, float* tiles, float* scales, int32_t* zero_point_corrections) const {
        const int32_t key_dim = shape_.layout.key_dim;
        for (int i = 0; i < padded_count(m); ++i) {
            char* out = reinterpret_cast<char*>(tile(tiles, i - i % m, m)) + i % m * kRowQuadBytes;
            alignas(64) int8_t int8_values[kMaxHeadDim] = {}, packed[kMaxHeadDim * kRowQuadBytes / 4];
            scales[i] = 0.0f;
            zero_point_corrections[i] = 0;
            if (i < count_) scales[i] = quantize(i, int8_values, zero_point_corrections[i]);
            pack_activation_row(int8_values, shape_.layout.value_dim, packed);
            for (int32_t quad = 0; quad < key_dim / 4; ++quad, out += m * kRowQuadBytes) {
                __builtin_memcpy(out, packed + quad * kRowQuadBytes, kRowQuadBytes);
            }
        }
    }

    // Loads quantised queries as rows of bytes, `stride` apart.
    void load_int8_rows(int m, int8_t* rows, int64_t stride, float* scales, int32_t* zero_point_corrections) const {
        for (int i = 0; i < padded_count(m); ++i) {
            int8_t* row = rows + i * stride;
            prefetch_query(i + kPrefetchQueries);
            __builtin_memset(row, 0, static_cast<size_t>(shape_.task.head_dim + 63) / 64 * 64);
            if (i < count_) scales[i] = quantize(i, row, zero_point_corrections[i]);
        }
    }

    // Loads scaled queries as rows of bf16.
    void load_bf16_rows(int m, uint16_t* rows, int64_t stride) const {
        const int32_t dim = shape_.task.head_dim;
        for (int i = 0; i < padded_count(m); ++i) {
            uint16_t* row = rows + i * stride;
            prefetch_query(i + kPrefetchQueries);
            for (int32_t k = 0; k < dim; k += kLanes) {
                const F32x16 q = i < count_ ? load_partial(query_ptr(i) + k, dim - k < kLanes ? dim - k : kLanes) : zero();
                store_bf16(row + k, q * broadcast(shape_.task.scale));
            }
        }
    }

    void write_output(int i, const SoftmaxState& state, const float* values) const {
        const AttentionTask& task = shape_.task;
        const int64_t h = head(i), width = static_cast<int64_t>(task.heads) * task.head_dim;
        float* out = output_ptr(i) - h * task.head_dim;
        write_normalized(state, values, task.sinks != nullptr ? task.sinks + h : nullptr, output_ptr(i), task.head_dim);
        if (h != task.heads - 1) return;
        for (int64_t k = width; k < task.out.stride; ++k) out[k] = 0.0f;
    }

private:
    // Quantises query i with zero padding and returns its scale. zero_point_correction cancels the + 128 of the stored keys.
    float quantize(int i, int8_t* int8_values, int32_t& zero_point_correction) const {
        const float scale = quantize_head(query_ptr(i), shape_.task.head_dim, int8_values) * shape_.task.scale;
        I32x16 quad_sums = zero_i32();
        for (int32_t k = 0; k < shape_.task.head_dim; k += 64)
            quad_sums = dot4(quad_sums, broadcast_i32(0x01010101), load_i32(int8_values + k));
        zero_point_correction = -128 * reduce_add(quad_sums);
        return scale;
    }

    static int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
    static int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
    int padded_count(int m) const { return (count_ + m - 1) / m * m; }
    int64_t token(int i) const { return (first_query_ + i) / shape_.group_size; }  // within the sequence
    int64_t head(int i) const { return item_.kv_head * shape_.group_size + (first_query_ + i) % shape_.group_size; }
    const float* query_ptr(int i) const {
        const AttentionTask& task = shape_.task;
        return task.q.data + (item_.sequence->begin + token(i)) * task.q.stride + head(i) * task.head_dim;
    }
    float* output_ptr(int i) const {
        const AttentionTask& task = shape_.task;
        return task.out.data + (item_.sequence->begin + token(i)) * task.out.stride + head(i) * task.head_dim;
    }
    void prefetch_head(const float* p, bool for_write) const {
        for (int32_t i = 0; p != nullptr && i < shape_.task.head_dim; i += 16)
            for_write ? prefetch_to_write(p + i) : prefetch(p + i);
    }
    float* tile(float* tiles, int i, int m) const {
        return tiles + static_cast<int64_t>(i / m) * m * shape_.layout.value_dim + i % m;
    }

    const AttentionShape& shape_;
    const WorkItem& item_;
    int64_t first_query_;
    int count_;
    int64_t first_key_, key_end_;
};

}  // namespace hasten::HASTEN_ISA
