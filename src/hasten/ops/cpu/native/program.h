// The recorded step of a model: instructions, the buffers between them, and the loop that runs them on all threads.
#pragma once

#include <memory>
#include <vector>

#include "arena.h"
#include "instruction.h"
#include "thread_pool.h"

namespace hasten {

class Program {
public:
    Program(const Kernels& kernels, ThreadPool& threads, const KvPool& kv, int32_t max_tokens);

    // Adds a buffer of max_tokens rows of one width. Its padding stays zero. Returns -1 when out of memory.
    int32_t add_buffer(int32_t width);
    int32_t add_slice(int32_t buffer, int32_t column);  // shares the buffer's memory
    int32_t add_int8_buffer(int32_t width);
    int32_t add_rotary_table(int32_t half);
    Bf16Rows bf16_rows(int32_t width);  // one buffer for each width; null when out of memory
    bool has_bf16_rows() const { return !bf16_rows_.empty(); }
    Rows rows(int32_t buffer) const;                     // {null, 0} for a negative index
    QuantizedRows quantized_rows(int32_t buffer) const;  // {} for a negative index
    float* rotary_table(int32_t index) const { return index < 0 ? nullptr : rotary_tables_[static_cast<size_t>(index)]; }

    // The planner that is shared by all layers with the work partition of this one.
    const AttentionPlanner& planner_for(int32_t group, const AttentionTask& task);

    void add(std::unique_ptr<Instruction> instruction) { instructions_.push_back(std::move(instruction)); }
    void begin_layer();
    void begin_head();
    RowScope scope() const { return head_begin_ < 0 ? RowScope::tokens : RowScope::logits; }

    const Kernels& kernels() const { return kernels_; }
    const KvPool& kv() const { return kv_; }

    // Returns false when out of memory.
    bool run(const hasten_step& arguments);

private:
    struct Range {
        size_t begin, end;
    };

    void run_range(Range range, int thread);
    bool plan_attention();

    const Kernels& kernels_;
    ThreadPool& threads_;
    const KvPool& kv_;
    const int32_t max_tokens_;
    Arena arena_;
    std::vector<Rows> rows_;
    std::vector<QuantizedRows> quantized_;
    std::vector<float*> rotary_tables_;
    std::vector<Bf16Rows> bf16_rows_;
    std::vector<std::unique_ptr<AttentionPlanner>> planners_;
    std::vector<std::unique_ptr<Instruction>> instructions_;
    std::vector<size_t> layer_begins_;  // the first instruction of each layer
    int64_t head_begin_ = -1;           // the first instruction of the head
    Step step_;
    std::vector<void*> scratch_;  // per thread
    std::vector<Range> ranges_;   // of this step
    std::unique_ptr<Arena> partials_arena_;
    void* partials_ = nullptr;
    int64_t partials_size_ = 0;
};

}  // namespace hasten
