// The panels of one split, as lists of addresses in the order in which they are read.
#pragma once

#include "attention_plan.h"

namespace hasten::HASTEN_ISA {

constexpr int kAhead = 4;  // panels between what is read and what is asked for

struct SplitPanels {
    int count = 0;
    int64_t first[kSplitPanels];                       // first position
    int32_t positions[kSplitPanels];                   // how many
    const uint8_t* stream[2 * kSplitPanels + kAhead];  // keys, then values, then the first keys of the next split
    const float* key_scales[kSplitPanels];             // int8 only
    const float* value_scales[kSplitPanels];

    const uint8_t* const* keys() const { return stream; }
    const uint8_t* const* values() const { return stream + count; }
    int64_t end_of(int j) const { return first[j] + positions[j]; }

    // The panels of `split` with positions of [oldest, newest).
    void list(const AttentionPlan& plan, const ItemPlace& item, int64_t split, int64_t oldest, int64_t newest) {
        const KvGeometry& geometry = plan.geometry;
        const KvLayer& kv = *plan.task.kv;
        const RowSpan& row = *item.row;
        const auto address = [&](int64_t panel) {
            const int64_t block = row.blocks[panel / geometry.panels - row.first_block];
            return (block * kv.kv_heads + item.kv_head) * geometry.panels + panel % geometry.panels;
        };
        const int64_t last = geometry.panel_of(newest - 1) + 1, stop = (split + 1) * kSplitPanels;
        int64_t from = geometry.panel_of(oldest);
        if (from < split * kSplitPanels) from = split * kSplitPanels;
        const int64_t to = stop < last ? stop : last;
        count = static_cast<int>(to - from);
        for (int j = 0; j < count; ++j) {
            const int64_t at = address(from + j);
            first[j] = geometry.first_position(from + j);
            positions[j] = geometry.positions_of(from + j);
            stream[j] = kv.keys + at * geometry.key_bytes;
            stream[count + j] = kv.values + at * geometry.value_bytes;
            if (kv.dtype != Dtype::int8) continue;
            key_scales[j] = kv.key_scales + at * kLanes;
            value_scales[j] = kv.value_scales + at * kLanes;
        }
        for (int j = 0; j < kAhead; ++j) {
            const bool more = to + j < last && to + j < (item.split_end * kSplitPanels);
            stream[2 * count + j] = more ? kv.keys + address(to + j) * geometry.key_bytes : stream[2 * count - 1];
        }
    }
};

}  // namespace hasten::HASTEN_ISA
