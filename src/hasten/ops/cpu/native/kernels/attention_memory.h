// Where the parts of an attention item lie in the scratch of its thread.
#pragma once

#include <cassert>

#include "attention_fixed.h"

namespace hasten::HASTEN_ISA {

constexpr int kTreeTokens = 64;  // of a row that branches, at most
constexpr int kPairDim = 256;    // the longest head whose bf16 values are gathered in pairs (attention_amx.h)
constexpr int64_t kPairStride = (kSplitPanels * kLanes / 2 + 2) * 64;  // between 16 of its dimensions and the next
constexpr int kValueChunk = 4;  // panels of values that stay in the first-level cache for all queries of an item

struct AttentionMemory {
    float* queries;        // tiles [dim][M], or [dim / 4][M] of prepared bytes
    float* query_scales;   // int8
    int32_t* corrections;  // int8
    float* steps;          // int8: [query], of the weights of the running split
    float* scores;         // [query][kScoreStride]
    float* part_values;    // [query][value_dim], of the running split; int8: [query][plane][value_dim] of int32
    float* values;         // [query][value_dim], merged
    Softmax* parts;        // [query], of the running split
    Softmax* states;       // [query], merged
    Visible* visible;      // [query]
    int32_t* reach;        // [tile][2]: panels of the running split that the tile sees
    float* tree;           // [query][kTreeTokens], of rows that branch
    float* wide_keys;      // two panels as floats
    float* wide_values;    // kValueChunk panels as floats
    uint8_t* gathered;     // in the same place: values of a split as dot products take them

    AttentionMemory(void* scratch, const KvGeometry& geometry, Dtype type) : next_(static_cast<uint8_t*>(scratch)) {
        const int64_t row = geometry.value_dim;
        queries = take<float>(kItemQueries * row);
        query_scales = take<float>(kItemQueries);
        corrections = take<int32_t>(kItemQueries);
        steps = take<float>(kItemQueries);
        scores = take<float>(kItemQueries * kScoreStride);
        part_values = take<float>(kItemQueries * row * (type == Dtype::int8 ? kWeightPlanes : 1));
        values = take<float>(kItemQueries * row);
        parts = take<Softmax>(kItemQueries);
        states = take<Softmax>(kItemQueries);
        visible = take<Visible>(kItemQueries);
        reach = take<int32_t>(2 * kItemQueries);
        tree = take<float>(kItemQueries * kTreeTokens);
        gathered = next_;
        assert(row > kPairDim || next_ + row / kLanes * kPairStride <= static_cast<uint8_t*>(scratch) + kAttentionScratch);
        if (type == Dtype::int8) {
            take<uint8_t>(row / kLanes * kQuadStride);
        } else {
            wide_keys = take<float>(2 * kLanes * row);
            wide_values = take<float>(kValueChunk * kLanes * row);
        }
        assert(next_ - static_cast<uint8_t*>(scratch) <= kAttentionScratch);
    }

private:
    template <class T>
    T* take(int64_t count) {
        T* taken = reinterpret_cast<T*>(next_);
        next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return taken;
    }
    uint8_t* next_;
};

}  // namespace hasten::HASTEN_ISA
