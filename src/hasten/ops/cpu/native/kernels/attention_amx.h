// Attention of many queries in AMX tiles, with int8 or bf16 keys and values. Few queries, draft trees and other types use the forms
// of attention.h.
//
// int8 has the bits of attention.h, since integer sums are exact. With bf16 the tiles round queries and softmax weights to bf16
// (relative error 2^-9) and sum in another order. So a token of a sequence with more than kMaxStreamQueries queries per KV head
// differs from the same token in a shorter step. Within this form it depends only on the keys that it sees.
// AttentionTask::allow_bf16 permits it, beside bf16 products that round likewise (linear_amx.h).
//
// The process must have permission to use the tile registers. Each call configures and releases the tiles.
#pragma once

#include "../simd/amx.h"
#include "attention.h"

namespace hasten::HASTEN_ISA {

constexpr int kQueryTileRows = kAmxTileRows;       // queries of a tile
constexpr int kBlockQueries = 2 * kQueryTileRows;  // queries that share loaded tiles
constexpr int kSoftmaxQueries = 4;                 // queries whose softmax is computed side by side

// The deepest tile that divides rows of this many bytes.
inline int depth_of(int64_t row_bytes) {
    int depth = 64;
    while (row_bytes % depth != 0) depth -= 4;
    return depth;
}

// Rows of 16 (Blocks 1) or 32 (Blocks 2) queries or weights, `stride` bytes apart: `steps` tiles in depth, `step` bytes apart.
struct TileRows {
    const void* data;
    int64_t stride, step;
    int steps;

    const uint8_t* at(int block, int i) const {
        return static_cast<const uint8_t*>(data) + block * kQueryTileRows * stride + i * step;
    }
};

// sums = rows * columns for one or two vectors of columns, whose tiles are consecutive from columns[i] on. `sums` is
// [queries][...], rows sum_stride floats apart. Bf16 false: signed times unsigned bytes.
template <bool Bf16, int Blocks, int Vectors>
inline void multiply_rows(const TileRows& rows, const uint8_t* const* columns, int64_t column_step, float* sums,
                          int64_t sum_stride) {
    _tile_zero(0);
    if constexpr (Vectors == 2) _tile_zero(1);
    if constexpr (Blocks == 2) _tile_zero(2);
    if constexpr (Blocks == 2 && Vectors == 2) _tile_zero(3);
    for (int i = 0; i < rows.steps; ++i) {
        _tile_loadd(4, rows.at(0, i), rows.stride);
        _tile_loadd(6, columns[0] + i * column_step, 64);
        if constexpr (Vectors == 2) _tile_loadd(7, columns[1] + i * column_step, 64);
        if constexpr (Blocks == 2) _tile_loadd(5, rows.at(1, i), rows.stride);
        if constexpr (Bf16) {
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (Vectors == 2) _tile_dpbf16ps(1, 4, 7);
            if constexpr (Blocks == 2) _tile_dpbf16ps(2, 5, 6);
            if constexpr (Blocks == 2 && Vectors == 2) _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbsud(0, 4, 6);
            if constexpr (Vectors == 2) _tile_dpbsud(1, 4, 7);
            if constexpr (Blocks == 2) _tile_dpbsud(2, 5, 6);
            if constexpr (Blocks == 2 && Vectors == 2) _tile_dpbsud(3, 5, 7);
        }
    }
    float* lower = sums + kQueryTileRows * sum_stride;
    _tile_stored(0, sums, sum_stride * 4);
    if constexpr (Vectors == 2) _tile_stored(1, sums + kLanes, sum_stride * 4);
    if constexpr (Blocks == 2) _tile_stored(2, lower, sum_stride * 4);
    if constexpr (Blocks == 2 && Vectors == 2) _tile_stored(3, lower + kLanes, sum_stride * 4);
}

template <bool Bf16>
inline void multiply_rows(int queries, int vectors, const TileRows& rows, const uint8_t* const* columns, int64_t column_step,
                          float* sums, int64_t sum_stride) {
    if (queries > kQueryTileRows) {
        if (vectors == 2) return multiply_rows<Bf16, 2, 2>(rows, columns, column_step, sums, sum_stride);
        return multiply_rows<Bf16, 2, 1>(rows, columns, column_step, sums, sum_stride);
    }
    if (vectors == 2) return multiply_rows<Bf16, 1, 2>(rows, columns, column_step, sums, sum_stride);
    return multiply_rows<Bf16, 1, 1>(rows, columns, column_step, sums, sum_stride);
}

// sums [16][2][value_dim] of 16 queries over weight blocks [begin, end) of packed values, in 16 or 32 dimensions.
template <int Vectors>
inline void accumulate_int8_tiles(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim,
                                  int32_t* sums) {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (Vectors == 2) _tile_zero(1);
    if constexpr (Vectors == 2) _tile_zero(3);
    for (int run = begin; run < end; ++run) {
        _tile_loadd(4, weights + run * kWeightBlockBytes, kWeightStride);
        _tile_loadd(6, values + run * 1024, 64);
        if constexpr (Vectors == 2) _tile_loadd(7, values + kPackedStride + run * 1024, 64);
        _tile_loadd(5, weights + run * kWeightBlockBytes + 64, kWeightStride);
        _tile_dpbusd(0, 4, 6);
        if constexpr (Vectors == 2) _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        if constexpr (Vectors == 2) _tile_dpbusd(3, 5, 7);
    }
    const int64_t row = int64_t{value_dim} * 8;
    _tile_stored(0, sums, row);
    _tile_stored(2, sums + value_dim, row);
    if constexpr (Vectors == 2) _tile_stored(1, sums + kLanes, row);
    if constexpr (Vectors == 2) _tile_stored(3, sums + value_dim + kLanes, row);
}

// bf16 values and weights are paired by panel. Panels are counted from the first panel of the split, so that pairs do not depend on
// the selection. leading_panels is 1 if the selection starts with the second panel of a pair.
constexpr int64_t kPairBytes = 2 * kLanes * 4;  // between pairs of a query, whose weights replace its scores
constexpr int64_t kPairTile = 1024;             // 32 values in 16 dimensions

// Rounds the weights of panels [begin, end) to bf16, with zeros in the rest of their pairs.
inline void weights_to_bf16(float* weights, int begin, int end, int leading_panels) {
    for (int pair = (begin + leading_panels) / 2; pair < (end + leading_panels + 1) / 2; ++pair) {
        F32x16 halves[2];
        for (int i = 0; i < 2; ++i) {
            const int j = 2 * pair + i - leading_panels;
            halves[i] = j >= begin && j < end ? load(weights + j * kLanes) : zero();
        }
        uint16_t* out = reinterpret_cast<uint16_t*>(weights) + pair * kPairBytes / 2;
        for (int i = 0; i < 2; ++i) store_bf16(out + i * kLanes, halves[i]);
    }
}

// 16 columns of two bf16 rows, interleaved. Rows from `rows` on may hold any bits and are replaced by zeros.
inline I32x16 load_pair(const uint8_t* first_positions, const uint8_t* second, int rows) {
    const auto dequantize_panel = [](const uint8_t* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    };
    const __m512i a = rows > 0 ? dequantize_panel(first_positions) : _mm512_setzero_si512(),
                  b = rows > 1 ? dequantize_panel(second) : _mm512_setzero_si512();
    return {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
}

// Packs all values of a split as [value_dim / 16][key / 2][16][2 keys], with zeros for panels outside the selection.
inline void pack_value_pairs(const ValuePanels& values, int leading_panels, int32_t value_dim, uint8_t* out) {
    const int panels = (values.count + leading_panels + 1) / 2 * 2;
    for (int n = 0; n < panels; ++n) {
        const int j = n - leading_panels;
        const bool listed = j >= 0 && j < values.count;
        for (int key = 0; key < kLanes; key += 2) {
            const int rows = listed ? values.keys[j] - key : 0;
            const int64_t row = key * values.row_bytes;
            uint8_t* end = out + (n * kLanes + key) * 32;
            for (int32_t i = 0; i < value_dim; i += kLanes, end += kPairStride) {
                const uint8_t* begin = listed ? values.panels[j] + row + i * 2 : nullptr;
                store_i32(end, load_pair(begin, begin + values.row_bytes, rows));
                if (!listed || i % 32 != 0) continue;
                prefetch_far(values.next[j] + row + i * 2);
                prefetch_far(values.next[j] + row + values.row_bytes + i * 2);
            }
        }
    }
}

template <Dtype type>
class AmxAttentionItem : AttentionItem<type> {
    using Item = AttentionItem<type>;
    using Item::layout_, Item::scratch_, Item::panels_, Item::item_, Item::queries_, Item::shape_;
    using Item::query_row, Item::scores_of, Item::split_output, Item::int32_sums, Item::weights_of;

public:
    using Item::Item;

    void run() {
        if (!uses_tiles()) return Item::run();
        if constexpr (kBf16)
            queries_.load_bf16_rows(kQueryTileRows, reinterpret_cast<uint16_t*>(scratch_.queries), query_bytes() / 2);
        else
            queries_.load_int8_rows(kQueryTileRows, reinterpret_cast<int8_t*>(scratch_.queries), query_bytes(),
                                    scratch_.query_scales, scratch_.zero_point_corrections);
        Item::clear_outputs();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.select(shape_, item_, split, queries_.first_key(), queries_.key_end());
            attend_split(split);
        }
        _tile_release();
        Item::write_output();
    }

private:
    static constexpr bool kBf16 = type == Dtype::bf16;

    // bf16 decides by the sequence, so that all its tokens use the same form.
    bool uses_tiles() const {
        if (queries_.has_tree() || (kBf16 && layout_.value_dim > kMaxPairDim)) return false;
        return (kBf16 ? item_.partition->queries : queries_.count()) > kMaxStreamQueries;
    }

    int64_t query_bytes() const { return int64_t{layout_.value_dim} * 4; }  // between queries, which fill a part of it
    int block_end(int i) const { return i + kBlockQueries < queries_.count() ? i + kBlockQueries : queries_.count(); }
    const int32_t* panel_range(int i) const { return scratch_.panel_ranges + i / kBlockQueries * 2; }

    // Scores, softmax and values are separate loops, since tiles are slow to start.
    void attend_split(int64_t split) {
        for (int i = 0; i < queries_.count(); i += kBlockQueries)
            find_block_panel_range(i, scratch_.panel_ranges + i / kBlockQueries * 2);
        const int leading_panels = static_cast<int>(layout_.panel_of(panels_.first_positions[0]) % 2);
        score();
        for (int i = 0; i < queries_.count(); i += kBlockQueries) softmax_block(i, leading_panels);
        if constexpr (kBf16) {
            Item::set_key_counts(queries_.key_end());
            pack_value_pairs(Item::value_panels(), leading_panels, layout_.value_dim, scratch_.packed_values);
        } else {
            pack_values(Item::value_panels(), 0, panels_.count, layout_.value_dim, scratch_.packed_values);
        }
        compiler_barrier();
        configure_tiles(kQueryTileRows, kQueryTileRows, 64);
        if constexpr (kBf16) {
            for (int i = 0; i < queries_.count(); i += kBlockQueries) accumulate_pairs(i, leading_panels);
        } else {
            for (int i = 0; i < queries_.count(); i += kQueryTileRows) accumulate_int8(i);
        }
        compiler_barrier();
        Item::finish_split(split);
    }

    void find_block_panel_range(int i, int32_t* panel_ranges) const {
        int begin = 0, end = panels_.count;
        while (begin < end && panels_.end_of(begin) <= scratch_.visible[i].first) ++begin;
        while (end > begin && panels_.first_positions[end - 1] >= scratch_.visible[block_end(i) - 1].end) --end;
        panel_ranges[0] = begin;
        panel_ranges[1] = end;
    }

    void score() {
        const int64_t row_bytes = layout_.key_dim * (kBf16 ? 2 : 1);
        const int depth = depth_of(row_bytes), steps = static_cast<int>(row_bytes / depth);
        compiler_barrier();
        configure_tiles(kQueryTileRows, kQueryTileRows, depth);
        for (int j = 0; j < panels_.count; j += 2) {
            for (int i = 0; i < queries_.count(); i += kBlockQueries) {
                if (j + 2 <= panel_range(i)[0] || j >= panel_range(i)[1]) continue;
                const TileRows rows{query_row(scratch_.queries, i), query_bytes(), depth, steps};
                multiply_rows<kBf16>(block_end(i) - i, j + 2 <= panels_.count ? 2 : 1, rows, panels_.keys() + j, depth * kLanes,
                                     scores_of(i) + j * kLanes, kScoreStride);
            }
        }
        compiler_barrier();
    }

    void softmax_block(int i, int leading_panels) {
        const int begin = panel_range(i)[0], end = panel_range(i)[1], last = block_end(i);
        for (; i + kSoftmaxQueries <= last; i += kSoftmaxQueries) softmax_queries<kSoftmaxQueries>(i, begin, end, leading_panels);
        for (; i < last; ++i) softmax_queries<1>(i, begin, end, leading_panels);
    }

    template <int M>
    void softmax_queries(int k, int begin, int end, [[maybe_unused]] int leading_panels) {
        const PanelPositions positions{panels_.first_positions, panels_.num_positions, panels_.value_scales};
        const float soft_cap = shape_.task.soft_cap;
        if constexpr (kBf16) {
            softmax_split<M, true>(scores_of(k), begin, end, scratch_.visible + k, positions, soft_cap, scratch_.split_states + k);
            for (int m = 0; m < M; ++m) weights_to_bf16(scores_of(k + m), begin, end, leading_panels);
        } else {
            const Int8Scores sums{scores_of(k), scratch_.zero_point_corrections + k, scratch_.query_scales + k, panels_.key_scales};
            softmax_int8<M>(sums, scores_of(k), begin, end, scratch_.visible + k, positions, soft_cap, scratch_.weight_scales + k,
                            scratch_.split_states + k);
        }
    }

    void accumulate_int8(int i) {
        const int32_t dim = layout_.value_dim;
        const int begin = weight_block_of(panel_range(i)[0]), end = weight_blocks_to(panel_range(i)[1]);
        const uint8_t* values = scratch_.packed_values;
        int32_t n = 0;
        for (; n + 32 <= dim; n += 32, values += 2 * kPackedStride) {
            accumulate_int8_tiles<2>(weights_of(i), values, begin, end, dim, int32_sums(i) + n);
        }
        if (n < dim) accumulate_int8_tiles<1>(weights_of(i), values, begin, end, dim, int32_sums(i) + n);
    }

    void accumulate_pairs(int i, int leading_panels) {
        const int32_t dim = layout_.value_dim;
        const int begin = (panel_range(i)[0] + leading_panels) / 2, end = (panel_range(i)[1] + leading_panels + 1) / 2;
        const TileRows rows{weights_of(i) + begin * kPairBytes, kWeightStride, kPairBytes, end - begin};
        for (int32_t n = 0; n < dim; n += 32) {
            const uint8_t* first_column = scratch_.packed_values + n / kLanes * kPairStride + begin * kPairTile;
            const uint8_t* columns[2] = {first_column, first_column + kPairStride};
            multiply_rows<true>(block_end(i) - i, n + 32 <= dim ? 2 : 1, rows, columns, kPairTile, split_output(i) + n, dim);
        }
    }
};

template <Dtype type>
inline void attend_heads_amx(const AttentionTask& task, int64_t index, void* scratch) {
    const AttentionShape shape(task);
    WorkItem item = shape.work_item(index, false);
    for (; item.num_kv_heads > 0; --item.num_kv_heads, ++item.kv_head) AmxAttentionItem<type>(shape, item, scratch).run();
}

inline void attend_amx(const AttentionTask& task, int64_t index, void* scratch) {
    if (task.kv->dtype == Dtype::int8) return attend_heads_amx<Dtype::int8>(task, index, scratch);
    if (task.allow_bf16 && task.kv->dtype == Dtype::bf16) return attend_heads_amx<Dtype::bf16>(task, index, scratch);
    attend(task, index, scratch);
}

}  // namespace hasten::HASTEN_ISA
