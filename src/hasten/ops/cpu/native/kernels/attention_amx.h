// Attention of many queries in AMX tiles, where keys and values are int8. Few queries, rows that branch and other types take the
// forms of attention.h.
//
// int8 gives the bits of attention.h: all sums are whole numbers.
//
// The caller has asked the system for the tile registers; they are configured and released inside each call.
#pragma once

#include "attention.h"

#ifdef HASTEN_EMULATE_AMX
#include "../simd/amx_emulation.h"
#endif

namespace hasten::HASTEN_ISA {

constexpr int kQueryRows = 16;                 // queries of a tile
constexpr int kBlockQueries = 2 * kQueryRows;  // that share what tiles load of keys
constexpr int kTogether = 4;                   // queries whose softmax is computed side by side

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// What was stored lies in memory before tiles are loaded: the compiler does not know that they are.
inline void before_tiles() { asm volatile("" ::: "memory"); }

// Tiles 0 to 3: sums. 4, 5: queries or weights, `depth` bytes deep. 6, 7: keys or values.
inline void shape_tiles(int depth) {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
        shapes.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : kQueryRows);
    }
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

// The deepest tile that divides rows of so many bytes.
inline int depth_of(int64_t row_bytes) {
    int depth = 64;
    while (row_bytes % depth != 0) depth -= 4;
    return depth;
}

// Integer sums of 16 (Blocks 1) or 32 queries, `stride` bytes apart, with one or two panels of keys, to rows of scores.
template <int Blocks, int Panels>
inline void score_bytes(const void* queries, int64_t stride, const uint8_t* const* keys, int steps, int depth, float* scores) {
    const uint8_t* rows = static_cast<const uint8_t*>(queries);
    _tile_zero(0);
    if constexpr (Panels == 2) _tile_zero(1);
    if constexpr (Blocks == 2) _tile_zero(2);
    if constexpr (Blocks == 2 && Panels == 2) _tile_zero(3);
    for (int step = 0; step < steps; ++step) {
        const int64_t line = int64_t{step} * depth * kLanes;
        _tile_loadd(4, rows + step * depth, stride);
        _tile_loadd(6, keys[0] + line, 64);
        if constexpr (Panels == 2) _tile_loadd(7, keys[1] + line, 64);
        if constexpr (Blocks == 2) _tile_loadd(5, rows + kQueryRows * stride + step * depth, stride);
        _tile_dpbsud(0, 4, 6);
        if constexpr (Panels == 2) _tile_dpbsud(1, 4, 7);
        if constexpr (Blocks == 2) _tile_dpbsud(2, 5, 6);
        if constexpr (Blocks == 2 && Panels == 2) _tile_dpbsud(3, 5, 7);
    }
    float* lower = scores + kQueryRows * kScoreStride;
    _tile_stored(0, scores, kWeightStride);
    if constexpr (Panels == 2) _tile_stored(1, scores + kLanes, kWeightStride);
    if constexpr (Blocks == 2) _tile_stored(2, lower, kWeightStride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_stored(3, lower + kLanes, kWeightStride);
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

class TileItem : AttentionItem<Dtype::int8> {
public:
    using AttentionItem::AttentionItem;

    void run() {
        if (queries_.count() <= kStreamQueries || queries_.branches()) return AttentionItem::run();
        queries_.load_int8_rows(kQueryRows, reinterpret_cast<int8_t*>(memory_.queries), query_bytes(), memory_.query_scales,
                                memory_.corrections);
        clear();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.list(shape_, place_, split, queries_.oldest(), queries_.newest());
            attend_split(split);
        }
        _tile_release();
        write();
    }

private:
    int64_t query_bytes() const { return int64_t{geometry_.value_dim} * 4; }

    int block_end(int i) const { return i + kBlockQueries < queries_.count() ? i + kBlockQueries : queries_.count(); }

    // The tiles have long stretches to themselves: they are slow to start.
    void attend_split(int64_t split) {
        const int32_t dim = geometry_.value_dim;
        for (int i = 0; i < queries_.count(); i += kBlockQueries) find_block_reach(i, memory_.reach + 2 * i);
        score();
        for (int i = 0; i < queries_.count(); i += kBlockQueries) weigh_block(i, memory_.reach[2 * i], memory_.reach[2 * i + 1]);
        gather_quads(value_panels(), 0, panels_.count, dim, memory_.gathered);
        before_tiles();
        shape_tiles(64);
        for (int i = 0; i < queries_.count(); i += kQueryRows) {
            const int32_t* reach = memory_.reach + 2 * (i / kBlockQueries * kBlockQueries);
            add_values(i, run_of(reach[0]), runs_to(reach[1]));
        }
        before_tiles();
        keep(split);
    }

    void find_block_reach(int i, int32_t* reach) const {
        int from = 0, to = panels_.count;
        while (from < to && panels_.end_of(from) <= memory_.visible[i].first) ++from;
        while (to > from && panels_.first[to - 1] >= memory_.visible[block_end(i) - 1].end) --to;
        reach[0] = from;
        reach[1] = to;
    }

    void score() {
        const int depth = depth_of(geometry_.key_dim), steps = geometry_.key_dim / depth;
        before_tiles();
        shape_tiles(depth);
        for (int j = 0; j < panels_.count; j += 2) {
            for (int i = 0; i < queries_.count(); i += kBlockQueries) {
                const int from = memory_.reach[2 * i], to = memory_.reach[2 * i + 1];
                if (j + 2 <= from || j >= to) continue;
                const bool two = j + 2 <= panels_.count, whole = block_end(i) - i > kQueryRows;
                if (whole)
                    two ? score<2, 2>(i, j, steps, depth) : score<2, 1>(i, j, steps, depth);
                else
                    two ? score<1, 2>(i, j, steps, depth) : score<1, 1>(i, j, steps, depth);
            }
        }
        before_tiles();
    }

    template <int Blocks, int Panels>
    void score(int i, int j, int steps, int depth) {
        score_bytes<Blocks, Panels>(row_of(memory_.queries, i), query_bytes(), panels_.keys() + j, steps, depth,
                                    scores_of(i) + j * kLanes);
    }

    void weigh_block(int i, int from, int to) {
        const int end = block_end(i);
        for (; i + kTogether <= end; i += kTogether) weigh_some<kTogether>(i, from, to);
        for (; i < end; ++i) weigh_some<1>(i, from, to);
    }

    template <int M>
    void weigh_some(int k, int from, int to) {
        const IntegerScores sums{scores_of(k), memory_.corrections + k, memory_.query_scales + k, panels_.key_scales};
        const PanelPositions positions{panels_.first, panels_.positions, panels_.value_scales};
        softmax_fixed<M>(sums, scores_of(k), from, to, memory_.visible + k, positions, shape_.task.soft_cap, memory_.steps + k,
                         memory_.parts + k);
    }

    void add_values(int i, int begin, int end) {
        const int32_t dim = geometry_.value_dim;
        const uint8_t* values = memory_.gathered;
        int32_t n = 0;
        for (; n + 32 <= dim; n += 32, values += 2 * kQuadStride) {
            add_tiles_of_bytes<2>(weights_of(i), values, begin, end, dim, sums_of(i) + n);
        }
        if (n < dim) add_tiles_of_bytes<1>(weights_of(i), values, begin, end, dim, sums_of(i) + n);
    }
};

inline void attend_in_tiles(const AttentionTask& task, int64_t item, void* scratch) {
    if (task.kv->dtype != Dtype::int8) return attend(task, item, scratch);
    const AttentionShape shape(task);
    ItemPlace place = shape.find(item, false);
    for (; place.heads > 0; --place.heads, ++place.kv_head) TileItem(shape, place, scratch).run();
}

}  // namespace hasten::HASTEN_ISA
