// The key and value panels of one split, as lists of addresses in read order.
#pragma once

#include "attention_plan.h"

namespace hasten::HASTEN_ISA {

constexpr int kPrefetchPanels = 4;  // panels between the one that is read and the one that is prefetched

struct SplitPanels {
    int count = 0;
    int64_t first_positions[kSplitPanels];
    int32_t num_positions[kSplitPanels];
    const uint8_t* read_order[2 * kSplitPanels + kPrefetchPanels];  // keys, then values, then the panels to prefetch after them
    const float* key_scales[kSplitPanels];                          // int8 only
    const float* value_scales[kSplitPanels];

    const uint8_t* const* keys() const { return read_order; }
    const uint8_t* const* values() const { return read_order + count; }
    int64_t end_of(int j) const { return first_positions[j] + num_positions[j]; }

    // Selects the panels of `split` that hold positions of [first_key, key_end).
    void select(const AttentionShape& shape, const WorkItem& item, int64_t split, int64_t first_key, int64_t key_end) {
        const KvLayout& layout = shape.layout;
        const KvLayer& kv = *shape.task.kv;
        const int64_t panel_end = layout.panel_of(key_end - 1) + 1, split_end = (split + 1) * kSplitPanels;
        int64_t begin = layout.panel_of(first_key);
        if (begin < split * kSplitPanels) begin = split * kSplitPanels;
        const int64_t end = split_end < panel_end ? split_end : panel_end;
        count = static_cast<int>(end - begin);
        for (int j = 0; j < count; ++j) {
            const int64_t panel = panel_index(shape, item, item.kv_head, begin + j);
            first_positions[j] = layout.first_position(begin + j);
            num_positions[j] = layout.positions_of(begin + j);
            read_order[j] = kv.keys + panel * layout.key_bytes;
            read_order[count + j] = kv.values + panel * layout.value_bytes;
            if (kv.dtype != Dtype::int8) continue;
            key_scales[j] = kv.key_scales + panel * kLanes;
            value_scales[j] = kv.value_scales + panel * kLanes;
        }
        const bool single_split = begin == layout.panel_of(first_key) && end == panel_end;
        for (int j = 0; j < kPrefetchPanels; ++j) {
            const uint8_t*& next = read_order[2 * count + j];
            if (end + j < panel_end && end + j < item.split_end * kSplitPanels) {
                next = kv.keys + panel_index(shape, item, item.kv_head, end + j) * layout.key_bytes;
            } else if (single_split && item.num_kv_heads > 1 && j < 2 * count) {  // the next head has a list of the same length
                const int64_t panel = panel_index(shape, item, item.kv_head + 1, begin + j % count);
                next = j < count ? kv.keys + panel * layout.key_bytes : kv.values + panel * layout.value_bytes;
            } else {
                next = read_order[2 * count - 1];
            }
        }
    }

    // The index, among all panels of the layer, of panel `panel` of the sequence.
    static int64_t panel_index(const AttentionShape& shape, const WorkItem& item, int32_t kv_head, int64_t panel) {
        const int64_t panels = shape.layout.panels, num_kv_heads = shape.task.kv->kv_heads;
        const SequenceSpan& sequence = *item.sequence;
        // The common case needs no slow divisions.
        if (panels == 1) return sequence.block_table[panel - sequence.first_block] * num_kv_heads + kv_head;
        return (sequence.block_table[panel / panels - sequence.first_block] * num_kv_heads + kv_head) * panels + panel % panels;
    }
};

}  // namespace hasten::HASTEN_ISA
