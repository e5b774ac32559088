// Paged attention: blocked for many queries, streamed for few, split along the keys (FlashAttention-2: Dao, 2023; split-KV).
#pragma once

#include "attention_scratch.h"
#include "attention_tree.h"

namespace hasten::HASTEN_ISA {

template <Dtype type>
class AttentionItem {
public:
    AttentionItem(const AttentionShape& shape, const WorkItem& item, void* scratch)
        : shape_(shape),
          item_(item),
          layout_(shape.layout),
          queries_(shape, item),
          scratch_(scratch, shape.layout, type),
          tree_(shape, item, queries_, panels_, scratch_.tree_scores) {}

    void run() {
        const bool few_queries = queries_.count() <= kMaxStreamQueries;
        if (few_queries)
            dispatch_queries(queries_.count(), [&](auto m) { load_queries(decltype(m)::value); });
        else
            load_queries(kTileQueries);
        clear_outputs();
        if (queries_.has_tree() && queries_.split_end() > shape_.split_of(tree_.begin())) score_tree_tokens();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.select(shape_, item_, split, queries_.first_key(), queries_.key_end());
            if (few_queries)
                dispatch_queries(queries_.count(), [&](auto m) { stream_split<decltype(m)::value>(split); });
            else
                blocked_split(split);
        }
        write_output();
    }

protected:
    static constexpr bool kInt8Values = type == Dtype::int8;  // softmax weights are quantised to integers
    static constexpr Dtype kComputeType = type == Dtype::int8 ? Dtype::int8 : Dtype::f32;  // type of the keys in the score kernels

    float* query_row(float* rows, int i) const { return rows + static_cast<int64_t>(i) * layout_.value_dim; }
    float* scores_of(int i) const { return scratch_.scores + static_cast<int64_t>(i) * kScoreStride; }
    int tiles() const { return (queries_.count() + kTileQueries - 1) / kTileQueries; }

    // Weighted sums of the values of query i over the current split.
    float* split_output(int i) const { return query_row(scratch_.split_values, kInt8Values ? kWeightPlanes * i : i); }
    int32_t* int32_sums(int i) const { return reinterpret_cast<int32_t*>(split_output(i)); }
    const uint8_t* weights_of(int i) const { return reinterpret_cast<const uint8_t*>(scores_of(i)); }

    void clear_outputs() {
        __builtin_memset(scratch_.values, 0, static_cast<size_t>(queries_.count() * layout_.value_dim) * sizeof(float));
        for (int i = 0; i < queries_.count(); ++i) {
            scratch_.states[i] = {-__builtin_inff(), 0.0f};
            scratch_.visible[i] = queries_.visible(i);
        }
    }

    void write_output() {
        if (item_.partials != nullptr) return;
        for (int i = 0; i < queries_.count(); ++i) {
            queries_.prefetch_output(i + kPrefetchQueries);
            queries_.write_output(i, scratch_.states[i], query_row(scratch_.values, i));
        }
    }

    void load_queries(int m) {
        if constexpr (type == Dtype::int8)
            queries_.load_int8(m, scratch_.queries, scratch_.query_scales, scratch_.zero_point_corrections);
        else
            queries_.load(m, scratch_.queries);
    }

    // Draft trees: scores of the sequence's own tokens, before the splits are processed in order of position.
    void score_tree_tokens() {
        for (int64_t split = shape_.split_of(tree_.begin()); split <= shape_.split_of(tree_.end() - 1); ++split) {
            panels_.select(shape_, item_, split, tree_.begin(), tree_.end());
            if (queries_.count() <= kMaxStreamQueries)
                dispatch_queries(queries_.count(), [&](auto m) { stream_scores<decltype(m)::value>(); });
            else
                blocked_scores();
            for (int k = 0; k < queries_.count(); ++k) tree_.save_scores(k, scores_of(k));
        }
    }

    // Scores of M queries of tile t and panels [j, j + N) of the selection.
    template <Dtype keys, int M, int N>
    void score(int t, int j, const uint8_t* const* panels, const uint8_t* const* next_panels) {
        const float* q = query_row(scratch_.queries, t * M);
        float* scores = scores_of(t * M) + j * kLanes;
        if constexpr (keys == Dtype::int8) {
            const Int8Queries queries{reinterpret_cast<const char*>(q), scratch_.query_scales + t * M,
                                      scratch_.zero_point_corrections + t * M};
            score_panels_int8<M, N>(queries, layout_.key_dim, panels, next_panels, panels_.key_scales + j, scores);
        } else {
            score_panels<keys, M, N>(q, layout_.key_dim, panels, next_panels, scores);
        }
    }

    template <int M>
    void stream_scores() {
        constexpr int N = vectors_for(M, 4);
        const uint8_t* const* keys = panels_.keys();
        int j = 0;
        for (; j + N <= panels_.count; j += N) score<type, M, N>(0, j, keys + j, keys + j + kPrefetchPanels);
        for (; j < panels_.count; ++j) score<type, M, 1>(0, j, keys + j, keys + j + kPrefetchPanels);
    }

    // Streaming form for few queries: every byte is read once, in order, and prefetched.
    template <int M>
    void stream_split(int64_t split) {
        stream_scores<M>();
        softmax(0, M, 0, panels_.count);
        const ValuePanels values = value_panels();
        if constexpr (kInt8Values && M <= kMaxUnpackedQueries) {
            accumulate_all_rows<M>(weights_of(0), values, layout_.value_dim, int32_sums(0));
        } else if constexpr (kInt8Values) {
            pack_values(values, 0, panels_.count, layout_.value_dim, scratch_.packed_values);
            accumulate_all_packed(M, weights_of(0), scratch_.packed_values, 0, weight_blocks_to(panels_.count), layout_.value_dim,
                                  int32_sums(0));
        } else {
            set_key_counts(queries_.key_end());
            accumulate_all_values<type, M, true>(scratch_.scores, values, scratch_.split_values, layout_.value_dim);
        }
        finish_split(split);
    }

    ValuePanels value_panels() const {
        return {panels_.values(), panels_.values() + kPrefetchPanels, keys_, panels_.count, layout_.value_bytes / kLanes};
    }

    void blocked_scores() {
        constexpr int N = vectors_for(kTileQueries, 2);
        for (int t = 0; t < tiles(); ++t) find_panel_range(t);
        int j = 0;
        for (; j + N <= panels_.count; j += N) score_tiles<N>(j);
        for (; j < panels_.count; ++j) score_tiles<1>(j);
    }

    // Blocked form for many queries: keys and values are converted to float once and serve all tiles.
    void blocked_split(int64_t split) {
        blocked_scores();
        for (int t = 0; t < tiles(); ++t)
            softmax(t * kTileQueries, kTileQueries, scratch_.panel_ranges[2 * t], scratch_.panel_ranges[2 * t + 1]);
        if constexpr (kInt8Values) {
            accumulate_packed_tiles();
        } else {
            for (int j = 0; j < panels_.count; j += kValueBlockPanels) {
                accumulate_tiles(j, j + kValueBlockPanels < panels_.count ? j + kValueBlockPanels : panels_.count);
            }
        }
        finish_split(split);
    }

    void accumulate_packed_tiles() {
        pack_values(value_panels(), 0, panels_.count, layout_.value_dim, scratch_.packed_values);
        for (int t = 0; t < tiles(); ++t) {
            const int begin = weight_block_of(scratch_.panel_ranges[2 * t]),
                      end = weight_blocks_to(scratch_.panel_ranges[2 * t + 1]), i = t * kTileQueries;
            if (begin < end)
                accumulate_all_packed(kTileQueries, weights_of(i), scratch_.packed_values, begin, end, layout_.value_dim,
                                      int32_sums(i));
        }
    }

    template <int N>
    void score_tiles(int j) {
        const uint8_t* panels[N];
        for (int n = 0; n < N; ++n) panels[n] = float_keys(j + n, scratch_.float_keys + n * kLanes * layout_.value_dim);
        for (int t = 0; t < tiles(); ++t) {
            if (scratch_.panel_ranges[2 * t] >= j + N || scratch_.panel_ranges[2 * t + 1] <= j) continue;
            score<kComputeType, kTileQueries, N>(t, j, panels,
                                                 type == kComputeType && t == 0 ? panels_.keys() + j + kPrefetchPanels : panels);
        }
    }

    const uint8_t* float_keys(int j, float* out) const {
        const uint8_t* panel = panels_.keys()[j];
        if constexpr (type == kComputeType) return panel;
        for (int64_t step = 0; step < layout_.key_dim / 2; ++step) {
            F32x16 even, odd;
            load_key_pair<type>(panel, step, even, odd);
            prefetch_far(panels_.keys()[j + kPrefetchPanels] + step * 64);
            store(out + step * 32, even);
            store(out + step * 32 + 16, odd);
        }
        return reinterpret_cast<const uint8_t*>(out);
    }

    const uint8_t* float_values(int j, float* out) const {
        const uint8_t* panel = panels_.values()[j];
        if constexpr (type == Dtype::f32) return panel;
        for (int64_t i = 0; i < kLanes * layout_.value_dim; i += 16) {
            store(out + i, load_value<type>(panel + i * element_size(type)));
            prefetch_far(panels_.values()[j + kPrefetchPanels] + i * element_size(type));
        }
        return reinterpret_cast<const uint8_t*>(out);
    }

    // Accumulates the values of panels [begin, end), at most kValueBlockPanels, for every tile that sees them.
    void accumulate_tiles(int begin, int end) {
        constexpr int M = kTileQueries;
        const uint8_t* panels[kValueBlockPanels];
        for (int j = begin; j < end; ++j) {
            panels[j - begin] =
                float_values(j, scratch_.float_values + static_cast<int64_t>(j - begin) * kLanes * layout_.value_dim);
        }
        const int64_t row_bytes = static_cast<int64_t>(layout_.value_dim) * 4;
        for (int t = 0; t < tiles(); ++t) {
            const int from = scratch_.panel_ranges[2 * t] > begin ? scratch_.panel_ranges[2 * t] : begin;
            const int to = scratch_.panel_ranges[2 * t + 1] < end ? scratch_.panel_ranges[2 * t + 1] : end;
            if (from >= to) continue;
            set_key_counts(tile_end(t));
            const ValuePanels values{panels + from - begin, panels + from - begin, keys_ + from, to - from, row_bytes};
            const float* weights = scores_of(t * M) + from * kLanes;
            accumulate_all_values<Dtype::f32, M, false>(weights, values, query_row(scratch_.split_values, t * M),
                                                        layout_.value_dim);
        }
    }

    int64_t tile_end(int t) const {
        const int end = (t + 1) * kTileQueries < queries_.count() ? (t + 1) * kTileQueries : queries_.count();
        return scratch_.visible[end - 1].end;
    }

    // Sets the number of values to read in each panel. Slots past `end` may hold another sequence's values. Values of tree tokens
    // are accumulated separately.
    void set_key_counts(int64_t end) {
        if (queries_.has_tree() && end > tree_.begin()) end = tree_.begin();
        for (int j = 0; j < panels_.count; ++j) {
            const int64_t remaining = end - panels_.first_positions[j];
            keys_[j] = remaining < panels_.num_positions[j] ? static_cast<int32_t>(remaining) : panels_.num_positions[j];
        }
    }

    // Finds the selected panels that are visible to tile t. The queries of a tree are in no order of position, so it is all panels.
    void find_panel_range(int t) {
        int begin = 0, end = panels_.count;
        if (!queries_.has_tree()) {
            const int64_t first_key = scratch_.visible[t * kTileQueries].first, key_end = tile_end(t);
            while (begin < end && panels_.end_of(begin) <= first_key) ++begin;
            while (end > begin && panels_.first_positions[end - 1] >= key_end) --end;
        }
        scratch_.panel_ranges[2 * t] = begin;
        scratch_.panel_ranges[2 * t + 1] = end;
    }

    // Softmax of a tile's queries over panels [begin, end) of the selection. Clears the sums of their values.
    void softmax(int i, int m, int begin, int end) {
        for (int k = i; k < i + m && k < queries_.count(); ++k) scratch_.split_states[k] = softmax(k, begin, end);
        if (kInt8Values && begin < end) return;  // int8 overwrites all sums
        __builtin_memset(split_output(i), 0, static_cast<size_t>(split_output(i + m) - split_output(i)) * sizeof(float));
    }

    SoftmaxState softmax(int k, int begin, int end) {
        const VisibleRange& visible = scratch_.visible[k];
        const float soft_cap = shape_.task.soft_cap;
        if (tree_.in_split()) return tree_.softmax(k, scores_of(k), visible, soft_cap, scratch_.weight_scales[k]);
        const PanelPositions positions{panels_.first_positions, panels_.num_positions, panels_.value_scales};
        SoftmaxState state;
        if constexpr (kInt8Values) {
            softmax_int8<1>(FloatScores{scores_of(k)}, scores_of(k), begin, end, &visible, positions, soft_cap,
                            scratch_.weight_scales + k, &state);
        } else {
            softmax_split<1>(scores_of(k), begin, end, &visible, positions, soft_cap, &state);
        }
        return state;
    }

    // Stores the results of a split as partials, or merges them if this item covers all splits.
    void finish_split(int64_t split) {
        for (int k = 0; k < queries_.count(); ++k) {
            if (tree_.in_split()) tree_.accumulate_values(k, split_output(k));
            if constexpr (kInt8Values) dequantize_sums(int32_sums(k), scratch_.weight_scales[k], layout_.value_dim);
            finish_split(split, k, split_output(k));
        }
    }

    void finish_split(int64_t split, int k, const float* output) {
        if (item_.partials == nullptr) {
            return merge_split(scratch_.states[k], query_row(scratch_.values, k), scratch_.split_states[k], output,
                               layout_.value_dim);
        }
        float* out = shape_.partial_of(item_, queries_.query_index(k), split);
        __builtin_memcpy(out, output, static_cast<size_t>(layout_.value_dim) * sizeof(float));
        __builtin_memcpy(out + layout_.value_dim, scratch_.split_states + k, sizeof(SoftmaxState));
    }

    const AttentionShape& shape_;
    const WorkItem& item_;
    const KvLayout layout_;
    const ItemQueries queries_;
    AttentionScratch scratch_;
    SplitPanels panels_;
    TreeTokens<type> tree_;
    int32_t keys_[kSplitPanels];  // values to read in each panel, for the current tile
};

template <Dtype type>
inline void attend_heads(const AttentionShape& shape, WorkItem item, void* scratch) {
    for (; item.num_kv_heads > 0; --item.num_kv_heads, ++item.kv_head) AttentionItem<type>(shape, item, scratch).run();
}

inline void attend(const AttentionTask& task, int64_t index, void* scratch) {
    const AttentionShape shape(task);
    const WorkItem item = shape.work_item(index, false);
    switch (task.kv->dtype) {
        case Dtype::bf16:
            return attend_heads<Dtype::bf16>(shape, item, scratch);
        case Dtype::f16:
            return attend_heads<Dtype::f16>(shape, item, scratch);
        case Dtype::int8:
            return attend_heads<Dtype::int8>(shape, item, scratch);
        default:
            return attend_heads<Dtype::f32>(shape, item, scratch);
    }
}

// Phase two: merges the partial results of one tile in ascending order of splits.
inline void merge_splits(const AttentionTask& task, int64_t index) {
    const AttentionShape shape(task);
    const WorkItem item = shape.work_item(index, true);
    const ItemQueries queries(shape, item);
    const int32_t value_dim = shape.layout.value_dim;
    alignas(64) float values[kMaxHeadDim];
    for (int i = 0; i < queries.count(); ++i) {
        SoftmaxState state{-__builtin_inff(), 0.0f};
        __builtin_memset(values, 0, sizeof values);
        for (int64_t split = queries.split_begin(); split < queries.split_end(); ++split) {
            const float* output = shape.partial_of(item, queries.query_index(i), split);
            SoftmaxState split_state;
            __builtin_memcpy(&split_state, output + value_dim, sizeof split_state);
            merge_split(state, values, split_state, output, value_dim);
        }
        queries.write_output(i, state, values);
    }
}

}  // namespace hasten::HASTEN_ISA
