// The panels of one split, as lists of addresses in the order in which they are read.
#pragma once

#include "attention_plan.h"

namespace hasten::HASTEN_ISA {

constexpr int kAhead = 4;  // panels between what is read and what is asked for

struct SplitPanels {
    int count = 0;
    int64_t first[kSplitPanels];                       // first position
    int32_t positions[kSplitPanels];                   // how many
    const uint8_t* stream[2 * kSplitPanels + kAhead];  // keys, then values, then what comes next: more keys, or another head
    const float* key_scales[kSplitPanels];             // int8 only
    const float* value_scales[kSplitPanels];

    const uint8_t* const* keys() const { return stream; }
    const uint8_t* const* values() const { return stream + count; }
    int64_t end_of(int j) const { return first[j] + positions[j]; }

    // The panels of `split` with positions of [oldest, newest).
    void list(const AttentionShape& shape, const ItemPlace& item, int64_t split, int64_t oldest, int64_t newest) {
        const KvGeometry& geometry = shape.geometry;
        const KvLayer& kv = *shape.task.kv;
        const int64_t last = geometry.panel_of(newest - 1) + 1, stop = (split + 1) * kSplitPanels;
        int64_t from = geometry.panel_of(oldest);
        if (from < split * kSplitPanels) from = split * kSplitPanels;
        const int64_t to = stop < last ? stop : last;
        count = static_cast<int>(to - from);
        for (int j = 0; j < count; ++j) {
            const int64_t at = address(shape, item, item.kv_head, from + j);
            first[j] = geometry.first_position(from + j);
            positions[j] = geometry.positions_of(from + j);
            stream[j] = kv.keys + at * geometry.key_bytes;
            stream[count + j] = kv.values + at * geometry.value_bytes;
            if (kv.dtype != Dtype::int8) continue;
            key_scales[j] = kv.key_scales + at * kLanes;
            value_scales[j] = kv.value_scales + at * kLanes;
        }
        const bool in_one = from == geometry.panel_of(oldest) && to == last;
        for (int j = 0; j < kAhead; ++j) {
            const uint8_t*& soon = stream[2 * count + j];
            if (to + j < last && to + j < item.split_end * kSplitPanels) {
                soon = kv.keys + address(shape, item, item.kv_head, to + j) * geometry.key_bytes;
            } else if (in_one && item.heads > 1 && j < 2 * count) {  // the next head, whose list is as long
                const int64_t at = address(shape, item, item.kv_head + 1, from + j % count);
                soon = j < count ? kv.keys + at * geometry.key_bytes : kv.values + at * geometry.value_bytes;
            } else {
                soon = stream[2 * count - 1];
            }
        }
    }

    // Of all panels of the layer, the one with panel `panel` of the row's sequence.
    static int64_t address(const AttentionShape& shape, const ItemPlace& item, int32_t kv_head, int64_t panel) {
        const int64_t panels = shape.geometry.panels, heads = shape.task.kv->kv_heads;
        const RowSpan& row = *item.row;
        if (panels == 1) return row.blocks[panel - row.first_block] * heads + kv_head;  // mostly; divisions are slow
        return (row.blocks[panel / panels - row.first_block] * heads + kv_head) * panels + panel % panels;
    }
};

}  // namespace hasten::HASTEN_ISA
