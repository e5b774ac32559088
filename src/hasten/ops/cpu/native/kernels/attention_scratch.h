// Memory layout of a work item of attention in the scratch of its thread.
#pragma once

#include "attention_int8_values.h"

namespace hasten::HASTEN_ISA {

constexpr int kMaxPairDim = 256;  // maximum head dimension for bf16 values packed in pairs (attention_amx.h)
constexpr int64_t kPairStride = (kSplitPanels * kLanes / 2 + 2) * 64;  // between vectors of 16 dimensions
constexpr int kValueBlockPanels = 4;  // panels of values that stay in the first-level cache for all queries of an item

struct AttentionScratch {
    float* queries;                   // tiles [dim][M], or [dim / 4][M] of packed quads
    float* query_scales;              // int8
    int32_t* zero_point_corrections;  // int8
    float* weight_scales;             // int8: [query], of the current split
    float* scores;                    // [query][kScoreStride]
    float* split_values;              // [query][value_dim], of the current split; int8: [query][plane][value_dim] of int32
    float* values;                    // [query][value_dim], merged
    SoftmaxState* split_states;       // [query], of the current split
    SoftmaxState* states;             // [query], merged
    VisibleRange* visible;            // [query]
    int32_t* panel_ranges;            // [tile][2]: panels of the current split that the tile sees
    float* tree_scores;               // [query][kMaxTreeTokens], of draft trees
    float* float_keys;                // two panels as floats
    float* float_values;              // kValueBlockPanels panels as floats
    uint8_t* packed_values;           // packed values of a split; shares memory with the float buffers

    AttentionScratch(void* scratch, const KvLayout& layout, Dtype type) : next_(static_cast<uint8_t*>(scratch)) {
        const int64_t row = layout.value_dim;
        queries = allocate<float>(kItemQueries * row);
        query_scales = allocate<float>(kItemQueries);
        zero_point_corrections = allocate<int32_t>(kItemQueries);
        weight_scales = allocate<float>(kItemQueries);
        scores = allocate<float>(kItemQueries * kScoreStride);
        split_values = allocate<float>(kItemQueries * row * (type == Dtype::int8 ? kWeightPlanes : 1));
        values = allocate<float>(kItemQueries * row);
        split_states = allocate<SoftmaxState>(kItemQueries);
        states = allocate<SoftmaxState>(kItemQueries);
        visible = allocate<VisibleRange>(kItemQueries);
        panel_ranges = allocate<int32_t>(2 * kItemQueries);
        tree_scores = allocate<float>(kItemQueries * kMaxTreeTokens);
        packed_values = next_;
        if (type == Dtype::int8) {
            allocate<uint8_t>(row / kLanes * kPackedStride);
        } else {
            float_keys = allocate<float>(2 * kLanes * row);
            float_values = allocate<float>(kValueBlockPanels * kLanes * row);
        }
    }

    // An upper bound of the bytes, for rows of `row` floats.
    static constexpr int64_t bytes(int64_t row, Dtype type) {
        const int64_t planes = type == Dtype::int8 ? kWeightPlanes : 1, num_arrays = 15;
        const int64_t query = 4 * ((2 + planes) * row + kScoreStride + kMaxTreeTokens + 3 + 2 * 2 + 4 + 2);
        const int64_t floats = 4 * (2 + kValueBlockPanels) * kLanes * row,
                      pairs = row <= kMaxPairDim ? row / kLanes * kPairStride : 0;
        const int64_t values = type == Dtype::int8 ? row / kLanes * kPackedStride : floats > pairs ? floats : pairs;
        return kItemQueries * query + values + num_arrays * 64;
    }

private:
    template <class T>
    T* allocate(int64_t count) {
        T* result = reinterpret_cast<T*>(next_);
        next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return result;
    }
    uint8_t* next_;
};
static_assert(AttentionScratch::bytes(kMaxHeadDim, Dtype::int8) <= kAttentionScratch);
static_assert(AttentionScratch::bytes(kMaxHeadDim, Dtype::f32) <= kAttentionScratch);
static_assert(AttentionScratch::bytes(kMaxPairDim, Dtype::bf16) <= kAttentionScratch);

}  // namespace hasten::HASTEN_ISA
