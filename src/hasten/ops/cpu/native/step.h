// The inputs of one step, and the positions, spans and slots derived from them.
#pragma once

#include <vector>

#include "hasten.h"
#include "kv_pool.h"

namespace hasten {

class Step {
public:
    explicit Step(const KvPool& pool) : pool_(pool) {}

    void begin(const hasten_step& arguments, int threads);

    const hasten_step& arguments() const { return *arguments_; }
    int threads() const { return threads_; }
    const int32_t* positions() const { return positions_.data(); }                                                // [num_tokens]
    const SequenceSpan* sequences(int32_t group) const { return sequences_[static_cast<size_t>(group)].data(); }  // [num_sequences]
    const int64_t* slot_mapping(int32_t group) const { return slot_mappings_[static_cast<size_t>(group)].data(); }  // [num_tokens]
    void* partials() const { return partials_; }
    void set_partials(void* memory) { partials_ = memory; }

private:
    const KvPool& pool_;
    const hasten_step* arguments_ = nullptr;
    int threads_ = 1;
    std::vector<int32_t> positions_;
    std::vector<std::vector<SequenceSpan>> sequences_;
    std::vector<std::vector<int64_t>> slot_mappings_;
    void* partials_ = nullptr;
};

}  // namespace hasten
