// How attention is cut into items, and where their partial results lie.
//
// The keys of a row are cut in splits of kSplitPanels panels, counted from position 0 of the sequence. A split gives a partial
// result (maximum, sum, weighted values); those of a row are merged in ascending order. Queries of one row and kv head, token by
// token and head by head of the group, are numbered and cut in tiles of kItemQueries. An item is one tile and a run of splits:
// all of them, merged at once, where there is work enough for every thread; else the partials are stored and merged afterwards.
#pragma once

#include "kv_view.h"

namespace hasten::HASTEN_ISA {

constexpr int kSplitPanels = 32;
constexpr int kItemQueries = 64;

// One row of the step.
struct RowCut {
    int64_t queries, tiles;  // of one kv head
    int64_t first_split, splits;
    int64_t chunks;  // runs of splits, each an item of every tile
};

struct ItemPlace {
    const RowSpan* row;
    RowCut cut;
    int32_t kv_head;
    int64_t tile;
    int64_t split_begin, split_end;  // of this item
    float* partials;                 // of this row; null where the item merges by itself
};

struct AttentionPlan {
    const AttentionTask& task;
    KvGeometry geometry;
    int32_t group;      // query heads of a kv head
    int64_t chunk = 1;  // splits of an item, at most
    int64_t partial;    // floats of one partial result: values, maximum, sum

    explicit AttentionPlan(const AttentionTask& of)
        : task(of), geometry(*of.kv), group(of.heads / of.kv_heads), partial(geometry.value_dim + kLanes) {
        int64_t work = 0;
        for (int32_t r = 0; r < task.num_rows; ++r) {
            const RowCut cut = cut_of(task.rows[r]);
            work += cut.tiles * cut.splits * task.kv_heads;
        }
        // About four items for a thread: what one row takes more than another is then shared out.
        const int64_t wanted = 4 * static_cast<int64_t>(task.num_threads > 0 ? task.num_threads : 1);
        chunk = (work + wanted - 1) / wanted;
        if (chunk < 1) chunk = 1;
    }

    // The first position that the query at `position` may see.
    int64_t first_visible(const RowSpan& row, int64_t position) const {
        const int64_t held = static_cast<int64_t>(row.first_block) * geometry.slots;
        const int64_t oldest = task.window > 0 ? position - task.window + 1 : 0;
        return oldest > held ? oldest : held;
    }

    int64_t split_of(int64_t position) const { return geometry.panel_of(position) / kSplitPanels; }

    RowCut cut_of(const RowSpan& row) const {
        RowCut cut{};
        const int64_t tokens = row.end - row.begin;
        if (tokens <= 0) return cut;
        cut.queries = tokens * group;
        cut.tiles = (cut.queries + kItemQueries - 1) / kItemQueries;
        cut.first_split = split_of(first_visible(row, row.start));
        cut.splits = split_of(row.start + tokens - 1) + 1 - cut.first_split;
        cut.chunks = (cut.splits + chunk - 1) / chunk;
        return cut;
    }

    int64_t partial_floats(const RowCut& cut) const {
        return cut.chunks > 1 ? cut.queries * cut.splits * task.kv_heads * partial : 0;
    }
    float* partial_of(const ItemPlace& place, int64_t query, int64_t split) const {
        const int64_t row = place.kv_head * place.cut.queries + query;
        return place.partials + (row * place.cut.splits + split - place.cut.first_split) * partial;
    }

    // Items of phase one, or of phase two (`merging`: only tiles that were cut in chunks). Later tiles see more keys: first.
    int64_t items_of(const RowCut& cut, bool merging) const {
        if (merging) return cut.chunks > 1 ? task.kv_heads * cut.tiles : 0;
        return task.kv_heads * cut.tiles * cut.chunks;
    }
    int64_t items(bool merging) const {
        int64_t total = 0;
        for (int32_t r = 0; r < task.num_rows; ++r) total += items_of(cut_of(task.rows[r]), merging);
        return total;
    }

    ItemPlace find(int64_t item, bool merging) const {
        float* partials = static_cast<float*>(task.partials);
        int32_t r = 0;
        RowCut cut = cut_of(task.rows[0]);
        for (; item >= items_of(cut, merging); cut = cut_of(task.rows[++r])) {
            item -= items_of(cut, merging);
            partials += partial_floats(cut);
        }
        const int64_t chunks = merging ? 1 : cut.chunks, per_head = cut.tiles * chunks;
        ItemPlace place{};
        place.row = &task.rows[r];
        place.cut = cut;
        place.kv_head = static_cast<int32_t>(item / per_head);
        place.tile = cut.tiles - 1 - item % per_head / chunks;
        place.split_begin = cut.first_split;
        place.split_end = cut.first_split + cut.splits;
        if (cut.chunks > 1) place.partials = partials;
        if (!merging) {
            place.split_begin += item % chunks * chunk;
            const int64_t end = place.split_begin + chunk;
            if (end < place.split_end) place.split_end = end;
        }
        return place;
    }
};

inline int64_t attention_items(const AttentionTask& task) { return AttentionPlan(task).items(false); }
inline int64_t merge_items(const AttentionTask& task) { return AttentionPlan(task).items(true); }

inline int64_t attention_partials(const AttentionTask& task) {
    const AttentionPlan plan(task);
    int64_t floats = 0;
    for (int32_t r = 0; r < task.num_rows; ++r) floats += plan.partial_floats(plan.cut_of(task.rows[r]));
    return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace hasten::HASTEN_ISA
