// Attention within draft trees. A token attends to its ancestors, which are scattered over the slots of the sequence. Ancestor i
// has position start + i.
//
// Before the softmax the scores of the ancestors move to the lanes of their positions. Their values are added in this order, split
// by split. So every sum has the same order and bits as in a plain sequence of the path. Sums of int8 values are integers, for
// which the order does not matter.
#pragma once

#include "attention_scratch.h"
#include "attention_panels.h"
#include "attention_queries.h"

namespace hasten::HASTEN_ISA {

// The new tokens of one sequence and KV head, as seen by the queries of a work item. Does nothing if the sequence is not a tree.
template <Dtype type>
class TreeTokens {
public:
    // token_scores is [query][kMaxTreeTokens]: scores of the sequence's tokens, then their weights.
    TreeTokens(const AttentionShape& shape, const WorkItem& item, const ItemQueries& queries, const SplitPanels& panels,
               float* token_scores)
        : sequence_(*item.sequence),
          queries_(queries),
          panels_(panels),
          token_scores_(token_scores),
          value_dim_(shape.layout.value_dim) {
        if (sequence_.tree_mask == nullptr) return;
        const KvLayout& layout = shape.layout;
        const int64_t row_bytes = layout.value_bytes / kLanes;
        for (int64_t position = sequence_.start; position < end(); ++position) {
            const int64_t panel = layout.panel_of(position), lane = position - layout.first_position(panel);
            const int64_t index = SplitPanels::panel_index(shape, item, item.kv_head, panel), token = position - sequence_.start;
            value_ptrs_[token] = shape.task.kv->values + index * layout.value_bytes + lane * row_bytes;
            value_scales_[token] = type == Dtype::int8 ? shape.task.kv->value_scales[index * kLanes + lane] : 1.0f;
        }
    }

    int64_t begin() const { return sequence_.start; }
    int64_t end() const { return static_cast<int64_t>(sequence_.start) + sequence_.end - sequence_.begin; }  // of the slots

    // Whether the selected panels hold positions of the sequence's tokens.
    bool in_split() const { return sequence_.tree_mask != nullptr && panels_.end_of(panels_.count - 1) > sequence_.start; }

    // Saves the scores of the sequence's tokens for query k from the selected panels.
    void save_scores(int k, const float* scores) {
        for (int j = 0; j < panels_.count; ++j) {
            for (int32_t lane = 0; lane < panels_.num_positions[j]; ++lane) {
                const int64_t token = panels_.first_positions[j] + lane - sequence_.start;
                if (token >= 0 && token < sequence_.end - sequence_.begin) token_scores(k)[token] = scores[j * kLanes + lane];
            }
        }
    }

    // softmax_split or softmax_int8 over all selected panels. Also sets the weights of the sequence's tokens.
    SoftmaxState softmax(int k, float* scores, const VisibleRange& visible, float soft_cap, float& weight_scale) {
        for_each_visible(k, [&](int token, int64_t lane) { scores[lane] = token_scores(k)[token]; });
        if constexpr (type == Dtype::int8) return softmax_int8_values(k, scores, visible, soft_cap, weight_scale);
        const PanelPositions positions{panels_.first_positions, panels_.num_positions, nullptr};
        SoftmaxState state;
        softmax_split<1>(scores, 0, panels_.count, &visible, positions, soft_cap, &state);
        for_each_visible(k, [&](int token, int64_t lane) { token_scores(k)[token] = scores[lane]; });
        return state;
    }

    // Adds to sums [value_dim] the weighted values of tokens that query k sees at positions of the selected panels. int8: integer
    // sums [plane][value_dim].
    void accumulate_values(int k, float* sums) const {
        const uint8_t* values[kMaxTreeTokens];
        float weights[kMaxTreeTokens];
        int count = 0;
        for_each_visible(k, [&](int token, int64_t) {
            values[count] = value_ptrs_[token];
            weights[count++] = token_scores(k)[token];
        });
        if constexpr (type == Dtype::int8) {
            for (int n = 0; n < count; ++n)
                accumulate_int8(static_cast<int32_t>(weights[n]), values[n], reinterpret_cast<int32_t*>(sums));
            return;
        }
        for (int32_t i = 0; i < value_dim_; i += kLanes) {
            F32x16 sum = load(sums + i);
            for (int n = 0; n < count; ++n)
                sum = fma(broadcast(weights[n]), load_value<type>(values[n] + i * element_size(type)), sum);
            store(sums + i, sum);
        }
    }

private:
    // Moves the weights of the sequence's tokens out of the panels, whose slots hold other tokens.
    SoftmaxState softmax_int8_values(int k, float* scores, const VisibleRange& visible, float soft_cap, float& weight_scale) {
        float scales[kSplitPanels * kLanes];
        const float* panel_scales[kSplitPanels];
        for (int j = 0; j < panels_.count; ++j) {
            panel_scales[j] = scales + j * kLanes;
            store(scales + j * kLanes, load(panels_.value_scales[j]));
        }
        for_each_visible(k, [&](int token, int64_t lane) { scales[lane] = value_scales_[token]; });
        const PanelPositions positions{panels_.first_positions, panels_.num_positions, panel_scales};
        SoftmaxState state;
        softmax_int8<1>(FloatScores{scores}, scores, 0, panels_.count, &visible, positions, soft_cap, &weight_scale, &state);
        uint8_t* weights = reinterpret_cast<uint8_t*>(scores);
        for_each_visible(k, [&](int token, int64_t lane) {
            token_scores(k)[token] = static_cast<float>(extract_weight(weights + lane / 64 * kWeightBlockBytes, lane % 64));
        });
        return state;
    }

    void accumulate_int8(int32_t weight, const uint8_t* values, int32_t* sums) const {
        for (int32_t i = 0; i < value_dim_; i += kLanes) {
            add_products(sums + i, value_dim_, weight, to_int(load_value<type>(values + i)));
        }
    }

    float* token_scores(int k) const { return token_scores_ + static_cast<int64_t>(k) * kMaxTreeTokens; }

    // Calls body(token, lane of its position) for the tokens that query k sees, in the selected panels.
    template <class Body>
    void for_each_visible(int k, const Body& body) const {
        uint64_t remaining = queries_.tree_mask(k);
        int64_t position = sequence_.start;
        for (int j = 0; j < panels_.count; ++j) {
            for (; remaining != 0 && position < panels_.end_of(j); ++position, remaining &= remaining - 1) {
                const int64_t lane = position - panels_.first_positions[j];
                if (lane >= 0) body(__builtin_ctzll(remaining), j * kLanes + lane);
            }
        }
    }

    const SequenceSpan& sequence_;
    const ItemQueries& queries_;
    const SplitPanels& panels_;
    float* token_scores_;
    int32_t value_dim_;
    const uint8_t* value_ptrs_[kMaxTreeTokens];
    float value_scales_[kMaxTreeTokens];
};

}  // namespace hasten::HASTEN_ISA
