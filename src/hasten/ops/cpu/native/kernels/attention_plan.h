// Work partition of attention (split-KV, as in Flash-Decoding), and the layout of the partial results.
//
// The keys of a sequence are divided into splits of kSplitPanels panels, counted from position 0. Each split gives a partial
// result: maximum, sum and weighted values. The partial results of a sequence are merged in ascending order.
//
// The queries of one sequence and KV head are numbered token by token, then head by head of the group. They are divided into tiles
// of kItemQueries. A work item is one tile and a run of splits. Where one item covers all splits it merges them itself; elsewhere
// the partial results are stored and merged in phase two. In steps of many short sequences an item covers several KV heads, so that
// it can prefetch the keys of the next head.
#pragma once

#include "kv_layout.h"

namespace hasten::HASTEN_ISA {

constexpr int kSplitPanels = 32;
constexpr int kItemQueries = 64;
constexpr int kMaxMemoryBoundQueries = 24;  // a sequence of at most so many queries is bound by memory bandwidth

struct WorkItem {
    const SequenceSpan* sequence;
    const SequencePartition* partition;
    int32_t kv_head, num_kv_heads;  // the first KV head of this item, and their number
    int64_t tile;
    int64_t split_begin, split_end;
    float* partials;  // of this sequence; null where the item merges its splits itself
};

// A task and the quantities derived from its shape.
struct AttentionShape {
    const AttentionTask& task;
    KvLayout layout;
    int32_t group_size;    // query heads of a KV head
    int64_t partial_size;  // floats of one partial result: values, maximum, sum

    explicit AttentionShape(const AttentionTask& attention)
        : task(attention),
          layout(*attention.kv),
          group_size(attention.heads / attention.kv_heads),
          partial_size(layout.value_dim + kLanes) {}

    // The first position that is visible to the query at `position`.
    int64_t first_visible(const SequenceSpan& sequence, int64_t position) const {
        const int64_t first_cached = static_cast<int64_t>(sequence.first_block) * layout.block_size;
        const int64_t first_in_window = task.window > 0 ? position - task.window + 1 : 0;
        return first_in_window > first_cached ? first_in_window : first_cached;
    }

    int64_t split_of(int64_t position) const { return layout.panel_of(position) / kSplitPanels; }

    float* partial_of(const WorkItem& item, int64_t query, int64_t split) const {
        const int64_t row = item.kv_head * item.partition->queries + query;
        return item.partials + (row * item.partition->splits + split - item.partition->first_split) * partial_size;
    }

    // The last sequence whose first item is not after this one.
    int32_t sequence_of(int64_t index, bool merging) const {
        int32_t low = 0, high = task.num_sequences;
        while (high - low > 1) {
            const int32_t middle = low + (high - low) / 2;
            const SequencePartition& partition = task.plan->partitions[middle];
            if ((merging ? partition.first_merge : partition.first_item) <= index)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    // Item `index` of phase one, or of the merge. Later tiles see more keys, so they come first.
    WorkItem work_item(int64_t index, bool merging) const {
        const int32_t s = sequence_of(index, merging);
        const SequencePartition& partition = task.plan->partitions[s];
        index -= merging ? partition.first_merge : partition.first_item;
        const int64_t chunks = merging ? 1 : partition.chunks, per_head = partition.tiles * chunks;
        WorkItem item{};
        item.sequence = &task.sequences[s];
        item.partition = &partition;
        item.num_kv_heads = merging ? 1 : partition.heads_per_item;
        item.kv_head = static_cast<int32_t>(index / per_head) * item.num_kv_heads;
        item.tile = partition.tiles - 1 - index % per_head / chunks;
        item.split_begin = partition.first_split;
        item.split_end = partition.first_split + partition.splits;
        if (partition.chunks > 1) item.partials = static_cast<float*>(task.partials) + partition.first_partial;
        if (!merging) {
            item.split_begin += index % chunks * task.plan->splits_per_item;
            const int64_t end = item.split_begin + task.plan->splits_per_item;
            if (end < item.split_end) item.split_end = end;
        }
        return item;
    }
};

inline SequencePartition partition_sequence(const AttentionShape& shape, const SequenceSpan& sequence) {
    SequencePartition partition{};
    const int64_t tokens = sequence.end - sequence.begin;
    if (tokens <= 0) return partition;
    partition.queries = tokens * shape.group_size;
    partition.tiles = (partition.queries + kItemQueries - 1) / kItemQueries;
    partition.first_split = shape.split_of(shape.first_visible(sequence, sequence.start));
    partition.splits = shape.split_of(sequence.start + tokens - 1) + 1 - partition.first_split;
    return partition;
}

inline void plan_attention(const AttentionTask& task, AttentionPlan& plan) {
    const AttentionShape shape(task);
    int64_t work = 0;
    for (int32_t s = 0; s < task.num_sequences; ++s) {
        plan.partitions[s] = partition_sequence(shape, task.sequences[s]);
        work += plan.partitions[s].tiles * plan.partitions[s].splits * task.kv_heads;
    }
    // About four items a thread balance sequences of unequal length.
    const int64_t target_items = 4 * static_cast<int64_t>(task.num_threads > 0 ? task.num_threads : 1);
    plan.splits_per_item = work > target_items ? (work + target_items - 1) / target_items : 1;
    int64_t total_tiles = 0;
    for (int32_t s = 0; s < task.num_sequences; ++s) total_tiles += plan.partitions[s].tiles * task.kv_heads;
    // The heads of an item are halved until a thread has at least eight items.
    int32_t heads = task.kv_heads;
    while (heads % 2 == 0 && total_tiles / heads < 2 * target_items) heads /= 2;
    if (total_tiles / heads < 2 * target_items) heads = 1;
    plan.items = plan.merges = 0;
    int64_t floats = 0;
    for (int32_t s = 0; s < task.num_sequences; ++s) {
        SequencePartition& partition = plan.partitions[s];
        partition.chunks = (partition.splits + plan.splits_per_item - 1) / plan.splits_per_item;
        partition.heads_per_item = partition.queries <= kMaxMemoryBoundQueries && partition.chunks == 1 ? heads : 1;
        partition.first_item = plan.items;
        partition.first_merge = plan.merges;
        partition.first_partial = floats;
        plan.items += task.kv_heads / partition.heads_per_item * partition.tiles * partition.chunks;
        if (partition.chunks <= 1) continue;  // its items merge their splits themselves
        plan.merges += task.kv_heads * partition.tiles;
        floats += partition.queries * partition.splits * task.kv_heads * shape.partial_size;
    }
    plan.partial_bytes = floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace hasten::HASTEN_ISA
