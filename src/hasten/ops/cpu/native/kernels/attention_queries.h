// The queries of one item: which they are, what each sees, and how they are laid out for the score kernels.
#pragma once

#include "attention_softmax.h"
#include "prepare.h"

namespace hasten::HASTEN_ISA {

constexpr int kQueriesAhead = 4;  // between the query that is read or written and the one that is asked for

class ItemQueries {
public:
    ItemQueries(const AttentionShape& shape, const ItemPlace& place) : shape_(shape), place_(place) {
        first_ = place.tile * kItemQueries;
        const int64_t left = place.cut->queries - first_;
        count_ = static_cast<int>(left < kItemQueries ? left : kItemQueries);
        oldest_ = visible(0).first;
        newest_ = visible(count_ - 1).end;
        for (int i = 0; i < count_ && branches(); ++i) {
            oldest_ = smaller(oldest_, visible(i).first);
            newest_ = larger(newest_, visible(i).end);
        }
    }

    int count() const { return count_; }

    // Asks for query i, or for the place of its result: they lie far apart.
    void prefetch_query(int i) const { prefetch_head(i < count_ ? source(i) : nullptr, false); }
    void prefetch_result(int i) const { prefetch_head(i < count_ ? result(i) : nullptr, true); }
    int64_t number(int i) const { return first_ + i; }  // among the queries of the row and kv head
    int64_t oldest() const { return oldest_; }          // what any query sees lies in [oldest, newest)
    int64_t newest() const { return newest_; }
    int64_t split_begin() const { return larger(place_.split_begin, shape_.split_of(oldest_)); }
    int64_t split_end() const { return smaller(place_.split_end, shape_.split_of(newest_ - 1) + 1); }

    bool branches() const { return place_.row->tree != nullptr; }
    uint64_t seen(int i) const { return place_.row->tree[token(i)]; }  // tokens of the row, where it branches

    // Positions, wherever their tokens lie.
    Visible visible(int i) const {
        const RowSpan& row = *place_.row;
        const int64_t position = row.start + (branches() ? __builtin_popcountll(seen(i)) - 1 : token(i));
        return {shape_.first_visible(row, position), position + 1};
    }

    // Queries times the scale of the scores, as tiles [dim][m]; the last tile is filled up with zeros.
    void load(int m, float* tiles) const {
        const int32_t dim = shape_.task.head_dim;
        for (int i = 0; i < padded(m); ++i) {
            float* out = tile(tiles, i, m);
            if (i >= count_) {
                for (int32_t k = 0; k < dim; ++k) out[k * m] = 0.0f;
                continue;
            }
            const float* q = source(i);
            for (int32_t k = 0; k < dim; ++k) out[k * m] = q[k] * shape_.task.scale;
        }
    }

    // The same as int8, tiles [dim' / 4][m] of four bytes, prepared; dim' is what the keys are padded to.
    void load_int8(int m, float* tiles, float* scales, int32_t* corrections) const {
        const int32_t key_dim = shape_.geometry.key_dim;
        for (int i = 0; i < padded(m); ++i) {
            char* out = reinterpret_cast<char*>(tile(tiles, i - i % m, m)) + i % m * kRowQuadBytes;
            alignas(64) int8_t values[kMaxHeadDim] = {}, prepared[kMaxHeadDim * kRowQuadBytes / 4];
            scales[i] = 0.0f;
            corrections[i] = 0;
            if (i < count_) scales[i] = quantize(i, values, corrections[i]);
            prepare_row(values, shape_.geometry.value_dim, prepared);
            for (int32_t quad = 0; quad < key_dim / 4; ++quad, out += m * kRowQuadBytes) {
                __builtin_memcpy(out, prepared + quad * kRowQuadBytes, kRowQuadBytes);
            }
        }
    }

    // The same as rows of bytes, `stride` apart.
    void load_int8_rows(int m, int8_t* rows, int64_t stride, float* scales, int32_t* corrections) const {
        for (int i = 0; i < padded(m); ++i) {
            int8_t* row = rows + i * stride;
            prefetch_query(i + kQueriesAhead);
            __builtin_memset(row, 0, static_cast<size_t>(shape_.task.head_dim + 63) / 64 * 64);
            if (i < count_) scales[i] = quantize(i, row, corrections[i]);
        }
    }

    // Queries times the scale of the scores as rows of bf16.
    void load_bf16_rows(int m, uint16_t* rows, int64_t stride) const {
        const int32_t dim = shape_.task.head_dim;
        for (int i = 0; i < padded(m); ++i) {
            uint16_t* row = rows + i * stride;
            prefetch_query(i + kQueriesAhead);
            for (int32_t k = 0; k < dim; k += kLanes) {
                const F16 q = i < count_ ? load_first(source(i) + k, dim - k < kLanes ? dim - k : kLanes) : zero();
                store_bf16(row + k, q * broadcast(shape_.task.scale));
            }
        }
    }

    void write(int i, const Softmax& state, const float* values) const {
        const AttentionTask& task = shape_.task;
        const int64_t h = head(i), width = static_cast<int64_t>(task.heads) * task.head_dim;
        float* out = result(i) - h * task.head_dim;
        finish(state, values, task.sinks != nullptr ? task.sinks + h : nullptr, result(i), task.head_dim);
        if (h != task.heads - 1) return;
        for (int64_t k = width; k < task.out.stride; ++k) out[k] = 0.0f;
    }

private:
    // Query i as bytes, padded with zeros, and its scale. `correction` is what keys stored as k + 128 add too much.
    float quantize(int i, int8_t* values, int32_t& correction) const {
        const float scale = quantize_head(source(i), shape_.task.head_dim, values) * shape_.task.scale;
        I16 totals = izero();
        for (int32_t k = 0; k < shape_.task.head_dim; k += 64) totals = dot4(totals, ibroadcast(0x01010101), iload(values + k));
        correction = -128 * sum(totals);
        return scale;
    }

    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
    static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
    int padded(int m) const { return (count_ + m - 1) / m * m; }
    int64_t token(int i) const { return (first_ + i) / shape_.group; }  // of the row
    int64_t head(int i) const { return place_.kv_head * shape_.group + (first_ + i) % shape_.group; }
    const float* source(int i) const {
        const AttentionTask& task = shape_.task;
        return task.q.data + (place_.row->begin + token(i)) * task.q.stride + head(i) * task.head_dim;
    }
    float* result(int i) const {
        const AttentionTask& task = shape_.task;
        return task.out.data + (place_.row->begin + token(i)) * task.out.stride + head(i) * task.head_dim;
    }
    void prefetch_head(const float* p, bool write) const {
        for (int32_t i = 0; p != nullptr && i < shape_.task.head_dim; i += 16) write ? prefetch_to_write(p + i) : prefetch(p + i);
    }
    float* tile(float* tiles, int i, int m) const {
        return tiles + static_cast<int64_t>(i / m) * m * shape_.geometry.value_dim + i % m;
    }

    const AttentionShape& shape_;
    const ItemPlace& place_;
    int64_t first_;
    int count_;
    int64_t oldest_, newest_;
};

}  // namespace hasten::HASTEN_ISA
