// The recorded step of a model: instructions, the buffers between them, and the loop that runs them on all threads.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "arena.h"
#include "instruction.h"
#include "thread_pool.h"

namespace hasten {

class Program {
public:
    Program(const Kernels& kernels, ThreadPool& threads, const KvPool& kv, int32_t max_tokens);

    // Adds a buffer of max_tokens rows of one width and returns its index, or HASTEN_OUT_OF_MEMORY. Its padding stays zero.
    int32_t add_buffer(int32_t width);
    int32_t add_slice(int32_t buffer, int32_t column, int32_t width);  // shares the buffer's memory
    int32_t add_int8_buffer(int32_t width);
    int32_t add_rotary_table(int32_t half);
    // One buffer for each width; null when out of memory.
    Bf16Rows bf16_rows(int32_t width);
    Int16Rows int16_rows(int32_t width);

    // Whether a float buffer of this index has at least this width, an int8 buffer exactly this width.
    bool has_columns(int64_t buffer, int64_t width) const { return contains(widths_, buffer, width); }
    bool has_int8_columns(int64_t buffer, int64_t width) const { return contains(int8_widths_, buffer, width, width); }
    bool has_rotary_table(int64_t index, int64_t half) const { return contains(rotary_halves_, index, half, half); }
    // Whether the buffer has whole rows, whose padding may be cleared.
    bool has_whole_rows(int64_t buffer, int64_t width) const {
        return has_columns(buffer, width) && !rows(static_cast<int32_t>(buffer)).is_slice;
    }
    bool has_bf16_rows() const { return !bf16_rows_.empty(); }
    Rows rows(int32_t buffer) const;                     // {null, 0} for a negative index
    QuantizedRows quantized_rows(int32_t buffer) const;  // {} for a negative index
    float* rotary_table(int32_t index) const { return index < 0 ? nullptr : rotary_tables_[static_cast<size_t>(index)]; }

    // The planner that is shared by all layers with the work partition of this one.
    const AttentionPlanner& planner_for(int32_t group, const AttentionTask& task);

    void add(std::unique_ptr<Instruction> instruction) { instructions_.push_back(std::move(instruction)); }
    void begin_layer();
    void begin_head();
    // Bounds that the inputs of a step must respect.
    void limit_token_ids(int32_t count) { num_token_ids_ = std::min(num_token_ids_, count); }
    void limit_positions(int32_t count) { num_positions_ = std::min(num_positions_, count); }
    void use_group(int32_t group) { num_groups_ = std::max(num_groups_, group + 1); }
    void limit_logits_stride(int64_t width) { logits_width_ = std::max(logits_width_, width); }
    bool is_in_prologue() const { return layer_begins_.empty() && head_begin_ < 0; }
    RowScope scope() const { return head_begin_ < 0 ? RowScope::tokens : RowScope::logits; }

    const Kernels& kernels() const { return kernels_; }
    const KvPool& kv() const { return kv_; }

    // Returns HASTEN_OK or an error.
    int32_t run(const hasten_step& arguments);

private:
    struct Range {
        size_t begin, end;
    };

    static bool contains(const std::vector<int32_t>& widths, int64_t index, int64_t least, int64_t most = INT64_MAX) {
        if (index < 0 || index >= static_cast<int64_t>(widths.size())) return false;
        return widths[static_cast<size_t>(index)] >= least && widths[static_cast<size_t>(index)] <= most;
    }
    bool counts_are_valid(const hasten_step& arguments) const;
    bool indices_are_valid(const hasten_step& arguments) const;
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
    std::vector<int32_t> widths_, int8_widths_, rotary_halves_;  // of the three above
    int32_t num_token_ids_ = INT32_MAX, num_positions_ = INT32_MAX, num_groups_ = 0;
    int64_t logits_width_ = 0;
    std::vector<Bf16Rows> bf16_rows_;
    std::vector<Int16Rows> int16_rows_;
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
