// How attention is cut into items, and where their partial results lie.
//
// The keys of a row are cut in splits of kSplitPanels panels, counted from position 0 of the sequence. A split gives a partial
// result (maximum, sum, weighted values); those of a row are merged in ascending order. Queries of one row and kv head, token by
// token and head by head of the group, are numbered and cut in tiles of kItemQueries. An item is one tile and a run of splits:
// all of them, merged at once, where there is work enough for every thread; else the partials are stored and merged afterwards.
// Where a step has many rows of few queries, an item goes through several kv heads, so that it can ask for the next one's keys.
#pragma once

#include "kv_view.h"

namespace hasten::HASTEN_ISA {

constexpr int kSplitPanels = 32;
constexpr int kItemQueries = 64;
constexpr int kFewQueries = 24;  // a row of so few queries is mostly reading

struct ItemPlace {
    const RowSpan* row;
    const RowCut* cut;
    int32_t kv_head, heads;  // the first of this item, and how many
    int64_t tile;
    int64_t split_begin, split_end;  // of this item
    float* partials;                 // of this row; null where the item merges by itself
};

// The task, and what follows from its shape.
struct AttentionShape {
    const AttentionTask& task;
    KvGeometry geometry;
    int32_t group;    // query heads of a kv head
    int64_t partial;  // floats of one partial result: values, maximum, sum

    explicit AttentionShape(const AttentionTask& of)
        : task(of), geometry(*of.kv), group(of.heads / of.kv_heads), partial(geometry.value_dim + kLanes) {}

    // The first position that the query at `position` may see.
    int64_t first_visible(const RowSpan& row, int64_t position) const {
        const int64_t held = static_cast<int64_t>(row.first_block) * geometry.slots;
        const int64_t oldest = task.window > 0 ? position - task.window + 1 : 0;
        return oldest > held ? oldest : held;
    }

    int64_t split_of(int64_t position) const { return geometry.panel_of(position) / kSplitPanels; }

    float* partial_of(const ItemPlace& place, int64_t query, int64_t split) const {
        const int64_t row = place.kv_head * place.cut->queries + query;
        return place.partials + (row * place.cut->splits + split - place.cut->first_split) * partial;
    }

    // The last row whose first item is not after this one.
    int32_t row_of(int64_t item, bool merging) const {
        int32_t low = 0, high = task.num_rows;
        while (high - low > 1) {
            const int32_t middle = low + (high - low) / 2;
            const RowCut& cut = task.plan->cuts[middle];
            if ((merging ? cut.first_merge : cut.first_item) <= item)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    // Later tiles see more keys: they come first.
    ItemPlace find(int64_t item, bool merging) const {
        const int32_t r = row_of(item, merging);
        const RowCut& cut = task.plan->cuts[r];
        item -= merging ? cut.first_merge : cut.first_item;
        const int64_t chunks = merging ? 1 : cut.chunks, per_head = cut.tiles * chunks;
        ItemPlace place{};
        place.row = &task.rows[r];
        place.cut = &cut;
        place.heads = merging ? 1 : cut.heads;
        place.kv_head = static_cast<int32_t>(item / per_head) * place.heads;
        place.tile = cut.tiles - 1 - item % per_head / chunks;
        place.split_begin = cut.first_split;
        place.split_end = cut.first_split + cut.splits;
        if (cut.chunks > 1) place.partials = static_cast<float*>(task.partials) + cut.first_partial;
        if (!merging) {
            place.split_begin += item % chunks * task.plan->chunk;
            const int64_t end = place.split_begin + task.plan->chunk;
            if (end < place.split_end) place.split_end = end;
        }
        return place;
    }
};

inline RowCut cut_of(const AttentionShape& shape, const RowSpan& row) {
    RowCut cut{};
    const int64_t tokens = row.end - row.begin;
    if (tokens <= 0) return cut;
    cut.queries = tokens * shape.group;
    cut.tiles = (cut.queries + kItemQueries - 1) / kItemQueries;
    cut.first_split = shape.split_of(shape.first_visible(row, row.start));
    cut.splits = shape.split_of(row.start + tokens - 1) + 1 - cut.first_split;
    return cut;
}

inline void plan_attention(const AttentionTask& task, AttentionPlan& plan) {
    const AttentionShape shape(task);
    int64_t work = 0;
    for (int32_t r = 0; r < task.num_rows; ++r) {
        plan.cuts[r] = cut_of(shape, task.rows[r]);
        work += plan.cuts[r].tiles * plan.cuts[r].splits * task.kv_heads;
    }
    // About four items for a thread: what one row takes more than another is then shared out.
    const int64_t wanted = 4 * static_cast<int64_t>(task.num_threads > 0 ? task.num_threads : 1);
    plan.chunk = work > wanted ? (work + wanted - 1) / wanted : 1;
    int64_t small = 0;
    for (int32_t r = 0; r < task.num_rows; ++r) small += plan.cuts[r].tiles * task.kv_heads;
    // Halved while it can be and an eighth of a thread's share is more than one item.
    int32_t heads = task.kv_heads;
    while (heads % 2 == 0 && small / heads < 2 * wanted) heads /= 2;
    if (small / heads < 2 * wanted) heads = 1;
    plan.items = plan.merges = 0;
    int64_t floats = 0;
    for (int32_t r = 0; r < task.num_rows; ++r) {
        RowCut& cut = plan.cuts[r];
        cut.chunks = (cut.splits + plan.chunk - 1) / plan.chunk;
        cut.heads = cut.queries <= kFewQueries && cut.chunks == 1 ? heads : 1;
        cut.first_item = plan.items;
        cut.first_merge = plan.merges;
        cut.first_partial = floats;
        plan.items += task.kv_heads / cut.heads * cut.tiles * cut.chunks;
        if (cut.chunks <= 1) continue;  // its items merge by themselves
        plan.merges += task.kv_heads * cut.tiles;
        floats += cut.queries * cut.splits * task.kv_heads * shape.partial;
    }
    plan.partial_bytes = floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace hasten::HASTEN_ISA
