// The inputs of one step, and the positions, spans and slots derived from them.
#pragma once

#include <vector>

#include "hasten.h"
#include "kv_pool.h"

namespace hasten {

// The rows that an instruction processes: all tokens of the step, or those of logits_indices.
enum class RowScope { tokens, logits };

class Step {
public:
    explicit Step(const KvPool& pool) : pool_(pool) {}

    // Returns false if a sequence, a block or a slot does not exist. The counts of `arguments` have been checked.
    bool begin(const hasten_step& arguments, int threads);

    const hasten_step& arguments() const { return *arguments_; }
    int threads() const { return threads_; }
    // Counts that begin() has checked.
    int32_t rows(RowScope scope) const {
        return static_cast<int32_t>(scope == RowScope::tokens ? arguments_->num_tokens : arguments_->num_logits);
    }
    int32_t num_sequences() const { return static_cast<int32_t>(arguments_->num_sequences); }
    const int32_t* positions() const { return positions_.data(); }                                                // [num_tokens]
    const SequenceSpan* sequences(int32_t group) const { return sequences_[static_cast<size_t>(group)].data(); }  // [num_sequences]
    const int64_t* slot_mapping(int32_t group) const { return slot_mappings_[static_cast<size_t>(group)].data(); }  // [num_tokens]
    void* partials() const { return partials_; }
    void set_partials(void* memory) { partials_ = memory; }

private:
    bool set_positions(const int32_t* bounds, const uint64_t* tree_mask);
    bool set_slots(size_t group, size_t index, const int32_t* bounds, const uint64_t* tree_mask);

    const KvPool& pool_;
    const hasten_step* arguments_ = nullptr;
    int threads_ = 1;
    std::vector<int32_t> positions_;
    std::vector<std::vector<SequenceSpan>> sequences_;
    std::vector<std::vector<int64_t>> slot_mappings_;
    void* partials_ = nullptr;
};

}  // namespace hasten
