// Rows whose tokens branch. A token sees some of the row's tokens, which lie scattered over its slots; the i-th of them stands at
// position start + i.
//
// Their scores go to the lanes of these positions before the softmax, and their values are added in this order, split by split. So
// every sum has the order that it has where the path is computed as a plain row, and the same bits. Sums of int8 values are whole
// numbers, which have no order.
#pragma once

#include "attention_memory.h"
#include "attention_panels.h"
#include "attention_queries.h"

namespace hasten::HASTEN_ISA {

// The new tokens of one row and kv head, as the queries of an item see them. Does nothing for rows that do not branch.
template <Dtype type>
class TreeTokens {
public:
    // `own` is [query][kTreeTokens]: scores of the row's tokens, then their weights.
    TreeTokens(const AttentionShape& shape, const ItemPlace& place, const ItemQueries& queries, const SplitPanels& panels,
               float* own)
        : row_(*place.row), queries_(queries), panels_(panels), own_(own), value_dim_(shape.geometry.value_dim) {
        if (row_.tree == nullptr) return;
        const KvGeometry& geometry = shape.geometry;
        const int64_t row_bytes = geometry.value_bytes / kLanes;
        for (int64_t position = row_.start; position < end(); ++position) {
            const int64_t panel = geometry.panel_of(position), lane = position - geometry.first_position(panel);
            const int64_t at = SplitPanels::address(shape, place, place.kv_head, panel), token = position - row_.start;
            values_[token] = shape.task.kv->values + at * geometry.value_bytes + lane * row_bytes;
            scales_[token] = type == Dtype::int8 ? shape.task.kv->value_scales[at * kLanes + lane] : 1.0f;
        }
    }

    int64_t begin() const { return row_.start; }
    int64_t end() const { return static_cast<int64_t>(row_.start) + row_.end - row_.begin; }  // of the slots

    // Whether the listed panels have positions of the row's tokens.
    bool here() const { return row_.tree != nullptr && panels_.end_of(panels_.count - 1) > row_.start; }

    // The scores of query k over the listed panels: those of the row's tokens are kept.
    void keep_scores(int k, const float* scores) {
        for (int j = 0; j < panels_.count; ++j) {
            for (int32_t lane = 0; lane < panels_.positions[j]; ++lane) {
                const int64_t token = panels_.first[j] + lane - row_.start;
                if (token >= 0 && token < row_.end - row_.begin) own(k)[token] = scores[j * kLanes + lane];
            }
        }
    }

    // As softmax_split, or softmax_fixed, over all listed panels; the row's tokens get their weights here.
    Softmax weigh(int k, float* scores, const Visible& visible, float soft_cap, float& step) {
        each(k, [&](int token, int64_t lane) { scores[lane] = own(k)[token]; });
        if constexpr (type == Dtype::int8) return weigh_fixed(k, scores, visible, soft_cap, step);
        const PanelPositions positions{panels_.first, panels_.positions, nullptr};
        Softmax state;
        softmax_split<1>(scores, 0, panels_.count, &visible, positions, soft_cap, &state);
        each(k, [&](int token, int64_t lane) { own(k)[token] = scores[lane]; });
        return state;
    }

    // sums [value_dim] += weighted values of the row's tokens that query k sees at positions of the listed panels. int8: whole
    // numbers, [plane][value_dim].
    void add_values(int k, float* sums) const {
        const uint8_t* values[kTreeTokens];
        float weights[kTreeTokens];
        int count = 0;
        each(k, [&](int token, int64_t) {
            values[count] = values_[token];
            weights[count++] = own(k)[token];
        });
        if constexpr (type == Dtype::int8) {
            for (int n = 0; n < count; ++n)
                add_fixed(static_cast<int32_t>(weights[n]), values[n], reinterpret_cast<int32_t*>(sums));
            return;
        }
        for (int32_t i = 0; i < value_dim_; i += kLanes) {
            F16 sum = load(sums + i);
            for (int n = 0; n < count; ++n) sum = fma(broadcast(weights[n]), load_value<type>(values[n] + i * size_of(type)), sum);
            store(sums + i, sum);
        }
    }

private:
    // The weights of the row's tokens are taken out of those of the panels, whose slots hold other tokens.
    Softmax weigh_fixed(int k, float* scores, const Visible& visible, float soft_cap, float& step) {
        float scales[kSplitPanels * kLanes];
        const float* panel_scales[kSplitPanels];
        for (int j = 0; j < panels_.count; ++j) {
            panel_scales[j] = scales + j * kLanes;
            store(scales + j * kLanes, load(panels_.value_scales[j]));
        }
        each(k, [&](int token, int64_t lane) { scales[lane] = scales_[token]; });
        const PanelPositions positions{panels_.first, panels_.positions, panel_scales};
        Softmax state;
        softmax_fixed<1>(FloatScores{scores}, scores, 0, panels_.count, &visible, positions, soft_cap, &step, &state);
        uint8_t* weights = reinterpret_cast<uint8_t*>(scores);
        each(k, [&](int token, int64_t lane) {
            own(k)[token] = static_cast<float>(take_weight(weights + lane / 64 * kRunBytes, lane % 64));
        });
        return state;
    }

    void add_fixed(int32_t weight, const uint8_t* values, int32_t* sums) const {
        for (int32_t i = 0; i < value_dim_; i += kLanes) {
            add_products(sums + i, value_dim_, weight, to_int(load_value<type>(values + i)));
        }
    }

    float* own(int k) const { return own_ + static_cast<int64_t>(k) * kTreeTokens; }

    // body(token of the row, lane of its position in the scores) for what query k sees, where a listed panel has the position.
    template <class Body>
    void each(int k, const Body& body) const {
        uint64_t left = queries_.seen(k);
        int64_t position = row_.start;
        for (int j = 0; j < panels_.count; ++j) {
            for (; left != 0 && position < panels_.end_of(j); ++position, left &= left - 1) {
                const int64_t lane = position - panels_.first[j];
                if (lane >= 0) body(__builtin_ctzll(left), j * kLanes + lane);
            }
        }
    }

    const RowSpan& row_;
    const ItemQueries& queries_;
    const SplitPanels& panels_;
    float* own_;
    int32_t value_dim_;
    const uint8_t* values_[kTreeTokens];
    float scales_[kTreeTokens];
};

}  // namespace hasten::HASTEN_ISA
