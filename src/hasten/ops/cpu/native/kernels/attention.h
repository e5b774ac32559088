// Attention over the paged pool: blocked for many queries, streamed for few, split over long contexts (Dao et al., 2023).
#pragma once

#include "attention_memory.h"
#include "attention_tree.h"

namespace hasten::HASTEN_ISA {

template <Dtype type>
class AttentionItem {
public:
    AttentionItem(const AttentionShape& shape, const ItemPlace& place, void* scratch)
        : shape_(shape),
          place_(place),
          geometry_(shape.geometry),
          queries_(shape, place),
          memory_(scratch, shape.geometry, type),
          tree_(shape, place, queries_, panels_, memory_.tree) {}

    void run() {
        const bool alone = queries_.count() <= kStreamQueries;
        if (alone)
            with_queries(queries_.count(), [&](auto m) { load_queries(decltype(m)::value); });
        else
            load_queries(kTileQueries);
        clear();
        if (queries_.branches() && queries_.split_end() > shape_.split_of(tree_.begin())) score_tree();
        for (int64_t split = queries_.split_begin(); split < queries_.split_end(); ++split) {
            panels_.list(shape_, place_, split, queries_.oldest(), queries_.newest());
            if (alone)
                with_queries(queries_.count(), [&](auto m) { stream_split<decltype(m)::value>(split); });
            else
                block_split(split);
        }
        write();
    }

protected:
    static constexpr bool kFixed = type == Dtype::int8;                             // weights of values are whole numbers
    static constexpr Dtype kWide = type == Dtype::int8 ? Dtype::int8 : Dtype::f32;  // of keys, once widened

    float* row_of(float* rows, int i) const { return rows + static_cast<int64_t>(i) * geometry_.value_dim; }
    float* scores_of(int i) const { return memory_.scores + static_cast<int64_t>(i) * kScoreStride; }
    int tiles() const { return (queries_.count() + kTileQueries - 1) / kTileQueries; }

    // The sums of query i's values over the running split.
    float* part_of(int i) const { return row_of(memory_.part_values, kFixed ? kWeightPlanes * i : i); }
    int32_t* sums_of(int i) const { return reinterpret_cast<int32_t*>(part_of(i)); }
    const uint8_t* weights_of(int i) const { return reinterpret_cast<const uint8_t*>(scores_of(i)); }

    void clear() {
        __builtin_memset(memory_.values, 0, static_cast<size_t>(queries_.count() * geometry_.value_dim) * sizeof(float));
        for (int i = 0; i < queries_.count(); ++i) {
            memory_.states[i] = {-__builtin_inff(), 0.0f};
            memory_.visible[i] = queries_.visible(i);
        }
    }

    void write() {
        if (place_.partials != nullptr) return;
        for (int i = 0; i < queries_.count(); ++i) {
            queries_.prefetch_result(i + kQueriesAhead);
            queries_.write(i, memory_.states[i], row_of(memory_.values, i));
        }
    }

    void load_queries(int m) {
        if constexpr (type == Dtype::int8)
            queries_.load_int8(m, memory_.queries, memory_.query_scales, memory_.corrections);
        else
            queries_.load(m, memory_.queries);
    }

    // What the queries of a row that branches would see of its own tokens, before the panels are gone through in their order.
    void score_tree() {
        for (int64_t split = shape_.split_of(tree_.begin()); split <= shape_.split_of(tree_.end() - 1); ++split) {
            panels_.list(shape_, place_, split, tree_.begin(), tree_.end());
            if (queries_.count() <= kStreamQueries)
                with_queries(queries_.count(), [&](auto m) { stream_scores<decltype(m)::value>(); });
            else
                block_scores();
            for (int k = 0; k < queries_.count(); ++k) tree_.keep_scores(k, scores_of(k));
        }
    }

    // Scores of tile t of M queries and panels [j, j + N) of the list.
    template <Dtype keys, int M, int N>
    void score(int t, int j, const uint8_t* const* panels, const uint8_t* const* ahead) {
        const float* q = row_of(memory_.queries, t * M);
        float* scores = scores_of(t * M) + j * kLanes;
        if constexpr (keys == Dtype::int8) {
            const Int8Queries queries{reinterpret_cast<const char*>(q), memory_.query_scales + t * M, memory_.corrections + t * M};
            score_panels_int8<M, N>(queries, geometry_.key_dim, panels, ahead, panels_.key_scales + j, scores);
        } else {
            score_panels<keys, M, N>(q, shape_.task.head_dim, panels, ahead, scores);
        }
    }

    template <int M>
    void stream_scores() {
        constexpr int N = vectors_for(M, 4);
        const uint8_t* const* keys = panels_.keys();
        int j = 0;
        for (; j + N <= panels_.count; j += N) score<type, M, N>(0, j, keys + j, keys + j + kAhead);
        for (; j < panels_.count; ++j) score<type, M, 1>(0, j, keys + j, keys + j + kAhead);
    }

    // Few queries: every byte is read once, in order, and asked for ahead.
    template <int M>
    void stream_split(int64_t split) {
        stream_scores<M>();
        weigh(0, M, 0, panels_.count);
        const ValuePanels values = value_panels();
        if constexpr (kFixed && M <= kDirectQueries) {
            add_all_rows<M>(weights_of(0), values, geometry_.value_dim, sums_of(0));
        } else if constexpr (kFixed) {
            gather_quads(values, 0, panels_.count, geometry_.value_dim, memory_.gathered);
            add_all_quads(M, weights_of(0), memory_.gathered, 0, runs_to(panels_.count), geometry_.value_dim, sums_of(0));
        } else {
            count_keys(queries_.newest());
            add_all_values<type, M, true>(memory_.scores, values, memory_.part_values, geometry_.value_dim);
        }
        keep(split);
    }

    ValuePanels value_panels() const {
        return {panels_.values(), panels_.values() + kAhead, keys_, panels_.count, geometry_.value_bytes / kLanes};
    }

    void block_scores() {
        constexpr int N = vectors_for(kTileQueries, 2);
        for (int t = 0; t < tiles(); ++t) find_reach(t);
        int j = 0;
        for (; j + N <= panels_.count; j += N) score_tiles<N>(j);
        for (; j < panels_.count; ++j) score_tiles<1>(j);
    }

    // Many queries: what was loaded serves them all, tile by tile; keys and values are widened to floats once for all tiles.
    void block_split(int64_t split) {
        block_scores();
        for (int t = 0; t < tiles(); ++t) weigh(t * kTileQueries, kTileQueries, memory_.reach[2 * t], memory_.reach[2 * t + 1]);
        if constexpr (kFixed) {
            add_quads_of_tiles();
        } else {
            for (int j = 0; j < panels_.count; j += kValueChunk) {
                add_tiles(j, j + kValueChunk < panels_.count ? j + kValueChunk : panels_.count);
            }
        }
        keep(split);
    }

    void add_quads_of_tiles() {
        gather_quads(value_panels(), 0, panels_.count, geometry_.value_dim, memory_.gathered);
        for (int t = 0; t < tiles(); ++t) {
            const int from = run_of(memory_.reach[2 * t]), to = runs_to(memory_.reach[2 * t + 1]), i = t * kTileQueries;
            if (from < to) add_all_quads(kTileQueries, weights_of(i), memory_.gathered, from, to, geometry_.value_dim, sums_of(i));
        }
    }

    template <int N>
    void score_tiles(int j) {
        const uint8_t* panels[N];
        for (int n = 0; n < N; ++n) panels[n] = wide_keys(j + n, memory_.wide_keys + n * kLanes * geometry_.value_dim);
        for (int t = 0; t < tiles(); ++t) {
            if (memory_.reach[2 * t] >= j + N || memory_.reach[2 * t + 1] <= j) continue;
            score<kWide, kTileQueries, N>(t, j, panels, type == kWide && t == 0 ? panels_.keys() + j + kAhead : panels);
        }
    }

    const uint8_t* wide_keys(int j, float* out) const {
        const uint8_t* panel = panels_.keys()[j];
        if constexpr (type == kWide) return panel;
        for (int64_t line = 0; line < shape_.task.head_dim / 2; ++line) {
            F16 even, odd;
            load_key_pair<type>(panel, line, even, odd);
            prefetch_far(panels_.keys()[j + kAhead] + line * 64);
            store(out + line * 32, even);
            store(out + line * 32 + 16, odd);
        }
        return reinterpret_cast<const uint8_t*>(out);
    }

    const uint8_t* wide_values(int j, float* out) const {
        const uint8_t* panel = panels_.values()[j];
        if constexpr (type == Dtype::f32) return panel;
        for (int64_t i = 0; i < kLanes * geometry_.value_dim; i += 16) {
            store(out + i, load_value<type>(panel + i * size_of(type)));
            prefetch_far(panels_.values()[j + kAhead] + i * size_of(type));
        }
        return reinterpret_cast<const uint8_t*>(out);
    }

    // Values of panels [begin, end), at most kValueChunk, for every tile that sees some of them.
    void add_tiles(int begin, int end) {
        constexpr int M = kTileQueries;
        const uint8_t* panels[kValueChunk];
        for (int j = begin; j < end; ++j) {
            panels[j - begin] =
                wide_values(j, memory_.wide_values + static_cast<int64_t>(j - begin) * kLanes * geometry_.value_dim);
        }
        const int64_t row_bytes = static_cast<int64_t>(geometry_.value_dim) * 4;
        for (int t = 0; t < tiles(); ++t) {
            const int from = memory_.reach[2 * t] > begin ? memory_.reach[2 * t] : begin;
            const int to = memory_.reach[2 * t + 1] < end ? memory_.reach[2 * t + 1] : end;
            if (from >= to) continue;
            count_keys(tile_end(t));
            const ValuePanels values{panels + from - begin, panels + from - begin, keys_ + from, to - from, row_bytes};
            const float* weights = scores_of(t * M) + from * kLanes;
            add_all_values<Dtype::f32, M, false>(weights, values, row_of(memory_.part_values, t * M), geometry_.value_dim);
        }
    }

    int64_t tile_end(int t) const {
        const int end = (t + 1) * kTileQueries < queries_.count() ? (t + 1) * kTileQueries : queries_.count();
        return memory_.visible[end - 1].end;
    }

    // Rows of values to read. Those past `end` belong to nobody yet and may hold what another sequence left; those of tokens that
    // branch are added by themselves.
    void count_keys(int64_t end) {
        if (queries_.branches() && end > tree_.begin()) end = tree_.begin();
        for (int j = 0; j < panels_.count; ++j) {
            const int64_t left = end - panels_.first[j];
            keys_[j] = left < panels_.positions[j] ? static_cast<int32_t>(left) : panels_.positions[j];
        }
    }

    // Which panels of the list the queries of tile t see. Where they branch they are in no order, and it is all of them.
    void find_reach(int t) {
        int from = 0, to = panels_.count;
        if (!queries_.branches()) {
            const int64_t oldest = memory_.visible[t * kTileQueries].first, end = tile_end(t);
            while (from < to && panels_.end_of(from) <= oldest) ++from;
            while (to > from && panels_.first[to - 1] >= end) --to;
        }
        memory_.reach[2 * t] = from;
        memory_.reach[2 * t + 1] = to;
    }

    // Softmax of the tile's queries over panels [begin, end) of the list, and room for its sums of values.
    void weigh(int i, int m, int begin, int end) {
        for (int k = i; k < i + m && k < queries_.count(); ++k) memory_.parts[k] = weigh(k, begin, end);
        if (kFixed && begin < end) return;  // they are written whole
        __builtin_memset(part_of(i), 0, static_cast<size_t>(part_of(i + m) - part_of(i)) * sizeof(float));
    }

    Softmax weigh(int k, int begin, int end) {
        const Visible& visible = memory_.visible[k];
        const float soft_cap = shape_.task.soft_cap;
        if (tree_.here()) return tree_.weigh(k, scores_of(k), visible, soft_cap, memory_.steps[k]);
        const PanelPositions positions{panels_.first, panels_.positions, panels_.value_scales};
        Softmax state;
        if constexpr (kFixed) {
            softmax_fixed<1>(FloatScores{scores_of(k)}, scores_of(k), begin, end, &visible, positions, soft_cap, memory_.steps + k,
                             &state);
        } else {
            softmax_split<1>(scores_of(k), begin, end, &visible, positions, soft_cap, &state);
        }
        return state;
    }

    // The split's results go to the partials, or are merged at once.
    void keep(int64_t split) {
        for (int k = 0; k < queries_.count(); ++k) {
            if (tree_.here()) tree_.add_values(k, part_of(k));
            if constexpr (kFixed) finish_fixed(sums_of(k), memory_.steps[k], geometry_.value_dim);
            keep(split, k, part_of(k));
        }
    }

    void keep(int64_t split, int k, const float* part) {
        if (place_.partials == nullptr) {
            return merge_partial(memory_.states[k], row_of(memory_.values, k), memory_.parts[k], part, geometry_.value_dim);
        }
        float* out = shape_.partial_of(place_, queries_.number(k), split);
        __builtin_memcpy(out, part, static_cast<size_t>(geometry_.value_dim) * sizeof(float));
        __builtin_memcpy(out + geometry_.value_dim, memory_.parts + k, sizeof(Softmax));
    }

    const AttentionShape& shape_;
    const ItemPlace& place_;
    const KvGeometry geometry_;
    const ItemQueries queries_;
    AttentionMemory memory_;
    SplitPanels panels_;
    TreeTokens<type> tree_;
    int32_t keys_[kSplitPanels];  // rows of values that the running tile reads
};

template <Dtype type>
inline void attend_heads(const AttentionShape& shape, ItemPlace place, void* scratch) {
    for (; place.heads > 0; --place.heads, ++place.kv_head) AttentionItem<type>(shape, place, scratch).run();
}

inline void attend(const AttentionTask& task, int64_t item, void* scratch) {
    const AttentionShape shape(task);
    const ItemPlace place = shape.find(item, false);
    switch (task.kv->dtype) {
        case Dtype::bf16:
            return attend_heads<Dtype::bf16>(shape, place, scratch);
        case Dtype::f16:
            return attend_heads<Dtype::f16>(shape, place, scratch);
        case Dtype::int8:
            return attend_heads<Dtype::int8>(shape, place, scratch);
        default:
            return attend_heads<Dtype::f32>(shape, place, scratch);
    }
}

// Phase two: the partial results of one tile, in ascending order.
inline void merge(const AttentionTask& task, int64_t item) {
    const AttentionShape shape(task);
    const ItemPlace place = shape.find(item, true);
    const ItemQueries queries(shape, place);
    const int32_t value_dim = shape.geometry.value_dim;
    alignas(64) float values[kMaxHeadDim];
    for (int i = 0; i < queries.count(); ++i) {
        Softmax state{-__builtin_inff(), 0.0f};
        __builtin_memset(values, 0, sizeof values);
        for (int64_t split = queries.split_begin(); split < queries.split_end(); ++split) {
            const float* part = shape.partial_of(place, queries.number(i), split);
            Softmax of_part;
            __builtin_memcpy(&of_part, part + value_dim, sizeof of_part);
            merge_partial(state, values, of_part, part, value_dim);
        }
        queries.write(i, state, values);
    }
}

}  // namespace hasten::HASTEN_ISA
