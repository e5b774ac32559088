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
constexpr int kBlockQueries = 2 * kQueryRows;  // whose scores stay in the first-level cache

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
inline void score_bytes(const float* queries, int64_t stride, const uint8_t* const* keys, int steps, int depth, float* scores) {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(queries);
    _tile_zero(0);
    if constexpr (Panels == 2) _tile_zero(1);
    if constexpr (Blocks == 2) _tile_zero(2);
    if constexpr (Blocks == 2 && Panels == 2) _tile_zero(3);
    for (int step = 0; step < steps; ++step) {
        _tile_loadd(4, rows + step * depth, stride);
        _tile_loadd(6, keys[0] + step * depth * kLanes, 64);
        if constexpr (Panels == 2) _tile_loadd(7, keys[1] + step * depth * kLanes, 64);
        if constexpr (Blocks == 2) _tile_loadd(5, rows + kQueryRows * stride + step * depth, stride);
        _tile_dpbsud(0, 4, 6);
        if constexpr (Panels == 2) _tile_dpbsud(1, 4, 7);
        if constexpr (Blocks == 2) _tile_dpbsud(2, 5, 6);
        if constexpr (Blocks == 2 && Panels == 2) _tile_dpbsud(3, 5, 7);
    }
    constexpr int64_t kRow = kScoreStride * 4;
    float* lower = scores + kQueryRows * kScoreStride;
    _tile_stored(0, scores, kRow);
    if constexpr (Panels == 2) _tile_stored(1, scores + kLanes, kRow);
    if constexpr (Blocks == 2) _tile_stored(2, lower, kRow);
    if constexpr (Blocks == 2 && Panels == 2) _tile_stored(3, lower + kLanes, kRow);
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
        const int64_t stride = int64_t{geometry_.value_dim} * 4;
        queries_.load_int8_rows(kQueryRows, reinterpret_cast<int8_t*>(memory_.queries), stride, memory_.query_scales,
                                memory_.corrections);
        clear();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.list(shape_, place_, split, queries_.oldest(), queries_.newest());
            gather_quads(value_panels(), 0, panels_.count, geometry_.value_dim, memory_.gathered);
            for (int i = 0; i < queries_.count(); i += kBlockQueries) attend_block(i);
            keep(split);
        }
        _tile_release();
        write();
    }

private:
    // Queries [i, i + kBlockQueries) over the listed panels.
    void attend_block(int i) {
        const int end = i + kBlockQueries < queries_.count() ? i + kBlockQueries : queries_.count();
        int from = 0, to = panels_.count;
        while (from < to && panels_.end_of(from) <= memory_.visible[i].first) ++from;
        while (to > from && panels_.first[to - 1] >= memory_.visible[end - 1].end) --to;
        score_block(i, end, from, to);
        for (int k = i; k < end; ++k) {
            const IntegerScores sums{scores_of(k), memory_.corrections[k], memory_.query_scales[k], panels_.key_scales};
            const PanelPositions positions{panels_.first, panels_.positions, panels_.value_scales};
            memory_.parts[k] =
                softmax_fixed(sums, scores_of(k), from, to, memory_.visible[k], positions, shape_.task.soft_cap, memory_.steps[k]);
        }
        add_block(i, end, run_of(from), runs_to(to));
    }

    void score_block(int i, int end, int from, int to) {
        const int depth = depth_of(geometry_.key_dim), steps = geometry_.key_dim / depth;
        before_tiles();
        shape_tiles(depth);
        int j = from;
        for (; j + 2 <= to; j += 2) end - i > kQueryRows ? score<2, 2>(i, j, steps, depth) : score<1, 2>(i, j, steps, depth);
        for (; j < to; ++j) end - i > kQueryRows ? score<2, 1>(i, j, steps, depth) : score<1, 1>(i, j, steps, depth);
        before_tiles();
    }

    template <int Blocks, int Panels>
    void score(int i, int j, int steps, int depth) {
        score_bytes<Blocks, Panels>(row_of(memory_.queries, i), int64_t{geometry_.value_dim} * 4, panels_.keys() + j, steps, depth,
                                    scores_of(i) + j * kLanes);
    }

    void add_block(int i, int end, int begin_run, int end_run) {
        const int32_t dim = geometry_.value_dim;
        before_tiles();
        shape_tiles(64);
        for (int k = i; k < end; k += kQueryRows) {
            int32_t n = 0;
            for (; n + 32 <= dim; n += 32) {
                add_tiles_of_bytes<2>(weights_of(k), memory_.gathered + n / kLanes * kQuadStride, begin_run, end_run, dim,
                                      sums_of(k) + n);
            }
            for (; n < dim; n += kLanes) {
                add_tiles_of_bytes<1>(weights_of(k), memory_.gathered + n / kLanes * kQuadStride, begin_run, end_run, dim,
                                      sums_of(k) + n);
            }
        }
        before_tiles();
    }
};

inline void attend_in_tiles(const AttentionTask& task, int64_t item, void* scratch) {
    if (task.kv->dtype != Dtype::int8) return attend(task, item, scratch);
    const AttentionShape shape(task);
    ItemPlace place = shape.find(item, false);
    for (; place.heads > 0; --place.heads, ++place.kv_head) TileItem(shape, place, scratch).run();
}

}  // namespace hasten::HASTEN_ISA
