// The recorded step of a model: a list of instructions, the buffers between them, and the loop that runs them on all threads.
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

    // Buffers of max_tokens rows; their padding is zero and stays so, as each has one width. -1 when memory is refused.
    int32_t add_rows(int32_t width);
    int32_t add_part(int32_t buffer, int32_t column);  // shares the buffer's memory
    int32_t add_quantized_rows(int32_t width);
    int32_t add_rotary(int32_t half);
    NarrowRows narrow_rows(int32_t width);  // one buffer for each width; null when memory is refused
    bool narrows() const { return !narrow_.empty(); }
    Rows rows(int32_t buffer) const;                     // {null, 0} for a negative index
    QuantizedRows quantized_rows(int32_t buffer) const;  // the same
    float* rotary(int32_t index) const { return index < 0 ? nullptr : rotary_[static_cast<size_t>(index)]; }

    // The cuts of all layers that are cut as this one.
    const AttentionCuts& cuts_for(int32_t group, const AttentionTask& task);

    void add(std::unique_ptr<Instruction> instruction) { instructions_.push_back(std::move(instruction)); }
    void begin_layer();
    void begin_head();
    Extent extent() const { return head_ < 0 ? Extent::tokens : Extent::logits; }

    const Kernels& kernels() const { return kernels_; }
    const KvPool& kv() const { return kv_; }

    // False when memory is refused.
    bool run(const hasten_step& plan);

private:
    struct Range {
        size_t begin, end;
    };

    void run_range(Range range, int thread);
    bool prepare_memory();

    const Kernels& kernels_;
    ThreadPool& threads_;
    const KvPool& kv_;
    const int32_t max_tokens_;
    Arena arena_;
    std::vector<Rows> rows_;
    std::vector<QuantizedRows> quantized_;
    std::vector<float*> rotary_;
    std::vector<NarrowRows> narrow_;
    std::vector<std::unique_ptr<AttentionCuts>> cuts_;
    std::vector<std::unique_ptr<Instruction>> instructions_;
    std::vector<size_t> layers_;  // the first instruction of each
    int64_t head_ = -1;           // the first instruction of the head
    Step step_;
    std::vector<void*> scratch_;  // per thread
    std::vector<Range> ranges_;   // of this step
    std::unique_ptr<Arena> partials_;
    void* partials_data_ = nullptr;
    int64_t partials_size_ = 0;
};

}  // namespace hasten
