// One step as the instructions see it: the caller's integers, and what is derived from them once per step.
#pragma once

#include <vector>

#include "hasten.h"
#include "kv_pool.h"

namespace hasten {

class Step {
public:
    explicit Step(const KvPool& pool) : pool_(pool) {}

    void begin(const hasten_step& plan, int threads);

    const hasten_step& plan() const { return *plan_; }
    int threads() const { return threads_; }
    const int32_t* positions() const { return positions_.data(); }                                   // [num_tokens]
    const RowSpan* spans(int32_t group) const { return spans_[static_cast<size_t>(group)].data(); }  // [num_rows]
    const int64_t* slots(int32_t group) const { return slots_[static_cast<size_t>(group)].data(); }  // [num_tokens]
    void* partials() const { return partials_; }
    void set_partials(void* memory) { partials_ = memory; }

private:
    const KvPool& pool_;
    const hasten_step* plan_ = nullptr;
    int threads_ = 1;
    std::vector<int32_t> positions_;
    std::vector<std::vector<RowSpan>> spans_;
    std::vector<std::vector<int64_t>> slots_;
    void* partials_ = nullptr;
};

}  // namespace hasten
