// Attention of many queries in AMX tiles, where keys and values are int8 or bf16. Few queries, rows that branch and other types
// take the forms of attention.h.
//
// int8 gives the bits of attention.h: all sums are whole numbers. With bf16 the tiles round queries and softmax weights to bf16,
// half a unit of 2^-8 each, and sum in another order. So a token of a row with more than kStreamQueries queries of a kv head in
// one step differs from the same token in a shorter row. Within the form it depends on nothing but what it sees. The task says
// whether that may be: only beside products of bf16 rows, which do the same (linear_amx.h).
//
// The caller has asked the system for the tile registers; they are configured and released inside each call.
#pragma once

#include "../simd/amx.h"
#include "attention.h"

namespace hasten::HASTEN_ISA {

constexpr int kQueryRows = kTileHeight;        // queries of a tile
constexpr int kBlockQueries = 2 * kQueryRows;  // that share what tiles load
constexpr int kTogether = 4;                   // queries whose softmax is computed side by side

// The deepest tile that divides rows of so many bytes.
inline int depth_of(int64_t row_bytes) {
    int depth = 64;
    while (row_bytes % depth != 0) depth -= 4;
    return depth;
}

// Rows of 16 (Blocks 1) or 32 queries or weights, `stride` bytes apart, of `steps` tiles in depth, `step` bytes apart.
struct TileRows {
    const void* data;
    int64_t stride, step;
    int steps;

    const uint8_t* at(int block, int i) const { return static_cast<const uint8_t*>(data) + block * kQueryRows * stride + i * step; }
};

// sums = rows * columns of one or two vectors, whose tiles lie one after the other from columns[i] on. `sums` is [queries][...],
// its rows `sum_stride` floats apart. bf16: else signed times unsigned bytes.
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
    float* lower = sums + kQueryRows * sum_stride;
    _tile_stored(0, sums, sum_stride * 4);
    if constexpr (Vectors == 2) _tile_stored(1, sums + kLanes, sum_stride * 4);
    if constexpr (Blocks == 2) _tile_stored(2, lower, sum_stride * 4);
    if constexpr (Blocks == 2 && Vectors == 2) _tile_stored(3, lower + kLanes, sum_stride * 4);
}

template <bool Bf16>
inline void multiply_rows(int queries, int vectors, const TileRows& rows, const uint8_t* const* columns, int64_t column_step,
                          float* sums, int64_t sum_stride) {
    if (queries > kQueryRows) {
        if (vectors == 2) return multiply_rows<Bf16, 2, 2>(rows, columns, column_step, sums, sum_stride);
        return multiply_rows<Bf16, 2, 1>(rows, columns, column_step, sums, sum_stride);
    }
    if (vectors == 2) return multiply_rows<Bf16, 1, 2>(rows, columns, column_step, sums, sum_stride);
    return multiply_rows<Bf16, 1, 1>(rows, columns, column_step, sums, sum_stride);
}

// sums [16][2][value_dim] of 16 queries over runs [begin, end) of gathered values, of 16 or 32 dimensions.
template <int Vectors>
inline void add_tiles_of_bytes(const uint8_t* weights, const uint8_t* values, int begin, int end, int32_t value_dim,
                               int32_t* sums) {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (Vectors == 2) _tile_zero(1);
    if constexpr (Vectors == 2) _tile_zero(3);
    for (int run = begin; run < end; ++run) {
        _tile_loadd(4, weights + run * kRunBytes, kWeightStride);
        _tile_loadd(6, values + run * 1024, 64);
        if constexpr (Vectors == 2) _tile_loadd(7, values + kQuadStride + run * 1024, 64);
        _tile_loadd(5, weights + run * kRunBytes + 64, kWeightStride);
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

// bf16 values and weights in pairs of panels, counted from the first panel of the split, so that they are the same ones for
// everybody: where the listed panels begin with the second of a pair, `lead` is 1.
constexpr int64_t kPairBytes = 2 * kLanes * 4;  // between pairs of a query, whose weights take the place of the scores
constexpr int64_t kPairTile = 1024;             // of 32 values in 16 dimensions

// Weights of panels [begin, end) to bf16, and zeros for the rest of their pairs.
inline void narrow_weights(float* weights, int begin, int end, int lead) {
    for (int pair = (begin + lead) / 2; pair < (end + lead + 1) / 2; ++pair) {
        F16 halves[2];
        for (int i = 0; i < 2; ++i) {
            const int j = 2 * pair + i - lead;
            halves[i] = j >= begin && j < end ? load(weights + j * kLanes) : zero();
        }
        uint16_t* out = reinterpret_cast<uint16_t*>(weights) + pair * kPairBytes / 2;
        for (int i = 0; i < 2; ++i) store_bf16(out + i * kLanes, halves[i]);
    }
}

// 16 columns of two rows of bf16, side by side; zeros for rows from `rows` on, which may hold anything.
inline I16 load_pair(const uint8_t* first, const uint8_t* second, int rows) {
    const auto widen = [](const uint8_t* p) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    };
    const __m512i a = rows > 0 ? widen(first) : _mm512_setzero_si512(), b = rows > 1 ? widen(second) : _mm512_setzero_si512();
    return {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
}

// All values of a split as [value_dim / 16][key / 2][16][2 keys]. Panels that are not listed count as zeros.
inline void gather_pairs(const ValuePanels& values, int lead, int32_t value_dim, uint8_t* out) {
    const int panels = (values.count + lead + 1) / 2 * 2;
    for (int n = 0; n < panels; ++n) {
        const int j = n - lead;
        const bool listed = j >= 0 && j < values.count;
        for (int key = 0; key < kLanes; key += 2) {
            const int rows = listed ? values.keys[j] - key : 0;
            const int64_t row = key * values.row_bytes;
            uint8_t* to = out + (n * kLanes + key) * 32;
            for (int32_t i = 0; i < value_dim; i += kLanes, to += kPairStride) {
                const uint8_t* from = listed ? values.panels[j] + row + i * 2 : nullptr;
                istore(to, load_pair(from, from + values.row_bytes, rows));
                if (!listed || i % 32 != 0) continue;
                prefetch_far(values.ahead[j] + row + i * 2);
                prefetch_far(values.ahead[j] + row + values.row_bytes + i * 2);
            }
        }
    }
}

template <Dtype type>
class TileItem : AttentionItem<type> {
    using Item = AttentionItem<type>;
    using Item::geometry_, Item::memory_, Item::panels_, Item::place_, Item::queries_, Item::shape_;
    using Item::row_of, Item::scores_of, Item::part_of, Item::sums_of, Item::weights_of;

public:
    using Item::Item;

    void run() {
        if (!in_tiles()) return Item::run();
        if constexpr (kBf16)
            queries_.load_bf16_rows(kQueryRows, reinterpret_cast<uint16_t*>(memory_.queries), query_bytes() / 2);
        else
            queries_.load_int8_rows(kQueryRows, reinterpret_cast<int8_t*>(memory_.queries), query_bytes(), memory_.query_scales,
                                    memory_.corrections);
        Item::clear();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.list(shape_, place_, split, queries_.oldest(), queries_.newest());
            attend_split(split);
        }
        _tile_release();
        Item::write();
    }

private:
    static constexpr bool kBf16 = type == Dtype::bf16;

    // bf16: by the row, so that its tokens have one form.
    bool in_tiles() const {
        if (queries_.branches() || (kBf16 && geometry_.value_dim > kPairDim)) return false;
        return (kBf16 ? place_.cut->queries : queries_.count()) > kStreamQueries;
    }

    int64_t query_bytes() const { return int64_t{geometry_.value_dim} * 4; }  // between queries, of which they fill a part
    int block_end(int i) const { return i + kBlockQueries < queries_.count() ? i + kBlockQueries : queries_.count(); }
    const int32_t* reach_of(int i) const { return memory_.reach + i / kBlockQueries * 2; }

    // The tiles have long stretches to themselves: they are slow to start.
    void attend_split(int64_t split) {
        for (int i = 0; i < queries_.count(); i += kBlockQueries) find_block_reach(i, memory_.reach + i / kBlockQueries * 2);
        const int lead = static_cast<int>(geometry_.panel_of(panels_.first[0]) % 2);
        score();
        for (int i = 0; i < queries_.count(); i += kBlockQueries) weigh_block(i, lead);
        if constexpr (kBf16) {
            Item::count_keys(queries_.newest());
            gather_pairs(Item::value_panels(), lead, geometry_.value_dim, memory_.gathered);
        } else {
            gather_quads(Item::value_panels(), 0, panels_.count, geometry_.value_dim, memory_.gathered);
        }
        settle_memory();
        shape_tiles(kQueryRows, kQueryRows, 64);
        if constexpr (kBf16) {
            for (int i = 0; i < queries_.count(); i += kBlockQueries) add_pairs(i, lead);
        } else {
            for (int i = 0; i < queries_.count(); i += kQueryRows) add_bytes(i);
        }
        settle_memory();
        Item::keep(split);
    }

    void find_block_reach(int i, int32_t* reach) const {
        int from = 0, to = panels_.count;
        while (from < to && panels_.end_of(from) <= memory_.visible[i].first) ++from;
        while (to > from && panels_.first[to - 1] >= memory_.visible[block_end(i) - 1].end) --to;
        reach[0] = from;
        reach[1] = to;
    }

    void score() {
        const int64_t row_bytes = geometry_.key_dim * (kBf16 ? 2 : 1);
        const int depth = depth_of(row_bytes), steps = static_cast<int>(row_bytes / depth);
        settle_memory();
        shape_tiles(kQueryRows, kQueryRows, depth);
        for (int j = 0; j < panels_.count; j += 2) {
            for (int i = 0; i < queries_.count(); i += kBlockQueries) {
                if (j + 2 <= reach_of(i)[0] || j >= reach_of(i)[1]) continue;
                const TileRows rows{row_of(memory_.queries, i), query_bytes(), depth, steps};
                multiply_rows<kBf16>(block_end(i) - i, j + 2 <= panels_.count ? 2 : 1, rows, panels_.keys() + j, depth * kLanes,
                                     scores_of(i) + j * kLanes, kScoreStride);
            }
        }
        settle_memory();
    }

    void weigh_block(int i, int lead) {
        const int from = reach_of(i)[0], to = reach_of(i)[1], end = block_end(i);
        for (; i + kTogether <= end; i += kTogether) weigh_some<kTogether>(i, from, to, lead);
        for (; i < end; ++i) weigh_some<1>(i, from, to, lead);
    }

    template <int M>
    void weigh_some(int k, int from, int to, [[maybe_unused]] int lead) {
        const PanelPositions positions{panels_.first, panels_.positions, panels_.value_scales};
        const float soft_cap = shape_.task.soft_cap;
        if constexpr (kBf16) {
            softmax_split<M, true>(scores_of(k), from, to, memory_.visible + k, positions, soft_cap, memory_.parts + k);
            for (int m = 0; m < M; ++m) narrow_weights(scores_of(k + m), from, to, lead);
        } else {
            const IntegerScores sums{scores_of(k), memory_.corrections + k, memory_.query_scales + k, panels_.key_scales};
            softmax_fixed<M>(sums, scores_of(k), from, to, memory_.visible + k, positions, soft_cap, memory_.steps + k,
                             memory_.parts + k);
        }
    }

    void add_bytes(int i) {
        const int32_t dim = geometry_.value_dim;
        const int begin = run_of(reach_of(i)[0]), end = runs_to(reach_of(i)[1]);
        const uint8_t* values = memory_.gathered;
        int32_t n = 0;
        for (; n + 32 <= dim; n += 32, values += 2 * kQuadStride) {
            add_tiles_of_bytes<2>(weights_of(i), values, begin, end, dim, sums_of(i) + n);
        }
        if (n < dim) add_tiles_of_bytes<1>(weights_of(i), values, begin, end, dim, sums_of(i) + n);
    }

    void add_pairs(int i, int lead) {
        const int32_t dim = geometry_.value_dim;
        const int begin = (reach_of(i)[0] + lead) / 2, end = (reach_of(i)[1] + lead + 1) / 2;
        const TileRows rows{weights_of(i) + begin * kPairBytes, kWeightStride, kPairBytes, end - begin};
        for (int32_t n = 0; n < dim; n += 32) {
            const uint8_t* first = memory_.gathered + n / kLanes * kPairStride + begin * kPairTile;
            const uint8_t* columns[2] = {first, first + kPairStride};
            multiply_rows<true>(block_end(i) - i, n + 32 <= dim ? 2 : 1, rows, columns, kPairTile, part_of(i) + n, dim);
        }
    }
};

template <Dtype type>
inline void attend_heads_in_tiles(const AttentionTask& task, int64_t item, void* scratch) {
    const AttentionShape shape(task);
    ItemPlace place = shape.find(item, false);
    for (; place.heads > 0; --place.heads, ++place.kv_head) TileItem<type>(shape, place, scratch).run();
}

inline void attend_in_tiles(const AttentionTask& task, int64_t item, void* scratch) {
    if (task.kv->dtype == Dtype::int8) return attend_heads_in_tiles<Dtype::int8>(task, item, scratch);
    if (task.narrow && task.kv->dtype == Dtype::bf16) return attend_heads_in_tiles<Dtype::bf16>(task, item, scratch);
    attend(task, item, scratch);
}

}  // namespace hasten::HASTEN_ISA
