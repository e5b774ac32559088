#include "program.h"

#include <algorithm>
#include <new>

namespace hasten {

Program::Program(const Kernels& kernels, ThreadPool& threads, const KvPool& kv, int32_t max_tokens)
    : kernels_(kernels), threads_(threads), kv_(kv), max_tokens_(max_tokens), step_(kv) {
    for (int thread = 0; thread < threads.threads(); ++thread) {
        scratch_.push_back(arena_.allocate(static_cast<size_t>(std::max(kLinearScratch, kAttentionScratch))));
        if (scratch_.back() == nullptr) throw std::bad_alloc();
    }
}

int32_t Program::add_buffer(int32_t width) {
    const int64_t stride = row_bytes(width * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
    auto* data = static_cast<float*>(arena_.allocate(static_cast<size_t>(stride * max_tokens_) * sizeof(float)));
    if (data == nullptr) return HASTEN_OUT_OF_MEMORY;
    rows_.push_back({data, stride});
    widths_.push_back(width);
    return static_cast<int32_t>(rows_.size()) - 1;
}

int32_t Program::add_slice(int32_t buffer, int32_t column, int32_t width) {
    const Rows full = rows(buffer);
    rows_.push_back({full.data + column, full.stride, true});
    widths_.push_back(width);
    return static_cast<int32_t>(rows_.size()) - 1;
}

int32_t Program::add_int8_buffer(int32_t width) {
    QuantizedRows rows{};
    rows.stride = row_bytes(round_up(width, kInt8RowPadding));
    const auto tokens = static_cast<size_t>(max_tokens_);
    rows.data = static_cast<int8_t*>(arena_.allocate(tokens * static_cast<size_t>(rows.stride)));
    rows.scales = static_cast<float*>(arena_.allocate(tokens * sizeof(float)));
    rows.sums = static_cast<int32_t*>(arena_.allocate(tokens * sizeof(int32_t)));
    if (rows.data == nullptr || rows.scales == nullptr || rows.sums == nullptr) return HASTEN_OUT_OF_MEMORY;
    quantized_.push_back(rows);
    int8_widths_.push_back(width);
    return static_cast<int32_t>(quantized_.size()) - 1;
}

int32_t Program::add_rotary_table(int32_t half) {
    auto* table =
        static_cast<float*>(arena_.allocate(static_cast<size_t>(max_tokens_) * 2 * static_cast<size_t>(half) * sizeof(float)));
    if (table == nullptr) return HASTEN_OUT_OF_MEMORY;
    rotary_tables_.push_back(table);
    rotary_halves_.push_back(half);
    return static_cast<int32_t>(rotary_tables_.size()) - 1;
}

Bf16Rows Program::bf16_rows(int32_t width) {
    const int64_t stride = bf16_stride(width);
    for (const Bf16Rows& rows : bf16_rows_) {
        if (rows.stride == stride) return rows;
    }
    auto* data = static_cast<uint16_t*>(arena_.allocate(static_cast<size_t>(stride * max_tokens_) * sizeof(uint16_t)));
    if (data == nullptr) return {nullptr, 0};
    bf16_rows_.push_back({data, stride});
    return bf16_rows_.back();
}

Int16Rows Program::int16_rows(int32_t width) {
    Int16Rows rows{};
    rows.stride = int16_stride(width);
    rows.blocks = int16_blocks(width);
    for (const Int16Rows& other : int16_rows_) {
        if (other.blocks == rows.blocks) return other;
    }
    const auto tokens = static_cast<size_t>(max_tokens_), blocks = static_cast<size_t>(rows.blocks);
    rows.data = static_cast<uint8_t*>(arena_.allocate(tokens * static_cast<size_t>(rows.stride)));
    rows.scales = static_cast<float*>(arena_.allocate(tokens * blocks * sizeof(float)));
    rows.sums = static_cast<int32_t*>(arena_.allocate(tokens * blocks * 8 * sizeof(int32_t)));
    if (rows.data == nullptr || rows.scales == nullptr || rows.sums == nullptr) return {};
    int16_rows_.push_back(rows);
    return rows;
}

Rows Program::rows(int32_t buffer) const { return buffer < 0 ? Rows{nullptr, 0} : rows_[static_cast<size_t>(buffer)]; }

QuantizedRows Program::quantized_rows(int32_t buffer) const {
    return buffer < 0 ? QuantizedRows{} : quantized_[static_cast<size_t>(buffer)];
}

const AttentionPlanner& Program::planner_for(int32_t group, const AttentionTask& task) {
    for (const auto& planner : planners_) {
        if (planner->matches(group, task)) return *planner;
    }
    planners_.push_back(std::make_unique<AttentionPlanner>(kernels_, group, task));
    return *planners_.back();
}

void Program::begin_layer() { layer_begins_.push_back(instructions_.size()); }

void Program::begin_head() { head_begin_ = static_cast<int64_t>(instructions_.size()); }

bool Program::counts_are_valid(const hasten_step& step) const {
    const auto in_range = [](int64_t value, int64_t most) { return value >= 0 && value <= most; };
    const int64_t num_layers = static_cast<int64_t>(layer_begins_.size());
    return in_range(step.num_tokens, max_tokens_) && in_range(step.num_sequences, max_tokens_) &&
           in_range(step.num_logits, max_tokens_) && in_range(step.num_block_ids, INT32_MAX) &&
           in_range(step.num_groups, kv_.num_layers()) && step.num_groups >= num_groups_ &&
           in_range(step.first_layer, step.last_layer) && step.last_layer <= num_layers &&
           (step.num_logits == 0 || step.logits_stride >= logits_width_);
}

bool Program::indices_are_valid(const hasten_step& step) const {
    const auto all_below = [](const int32_t* values, int64_t count, int64_t limit) {
        return std::all_of(values, values + count, [=](int32_t value) { return value >= 0 && value < limit; });
    };
    const bool embeds = step.first_layer == 0;
    return all_below(step.logits_indices, step.num_logits, step.num_tokens) &&
           (!embeds || (all_below(step.token_ids, step.num_tokens, num_token_ids_) &&
                        all_below(step_.positions(), step.num_tokens, num_positions_)));
}

int32_t Program::run(const hasten_step& arguments) {
    if (!counts_are_valid(arguments) || !step_.begin(arguments, threads_.threads()) || !indices_are_valid(arguments)) {
        return HASTEN_INVALID_ARGUMENT;
    }
    const size_t head = head_begin_ < 0 ? instructions_.size() : static_cast<size_t>(head_begin_);
    const auto layer_begin = [&](int64_t index) {
        return static_cast<size_t>(index) < layer_begins_.size() ? layer_begins_[static_cast<size_t>(index)] : head;
    };
    ranges_.clear();
    ranges_.push_back({0, layer_begin(0)});
    ranges_.push_back({layer_begin(arguments.first_layer), layer_begin(arguments.last_layer)});
    if (arguments.num_logits > 0) ranges_.push_back({head, instructions_.size()});
    if (!plan_attention()) return HASTEN_OUT_OF_MEMORY;
    threads_.run(
        [](void* context, int thread) {
            auto* program = static_cast<Program*>(context);
            for (const Range range : program->ranges_) program->run_range(range, thread);
        },
        this);
    return HASTEN_OK;
}

void Program::run_range(Range range, int thread) {
    void* const scratch = scratch_[static_cast<size_t>(thread)];
    for (size_t i = range.begin; i < range.end;) {
        const Instruction& instruction = *instructions_[i];
        const int64_t items = instruction.items(step_);
        const size_t next = i + 1;
        size_t next_shared = next;  // the next instruction with more than one item
        while (next_shared < range.end && instructions_[next_shared]->items(step_) <= 1) ++next_shared;
        // Instructions of one item run in the last thread to arrive, while the others wait: each saves a barrier.
        threads_.parallel_for(
            items, [&](int64_t item) { instruction.run(step_, item, scratch); },
            [&] {
                for (size_t j = next; j < next_shared; ++j) {
                    if (instructions_[j]->items(step_) == 1) instructions_[j]->run(step_, 0, scratch);
                }
            });
        i = next_shared;
    }
}

bool Program::plan_attention() {
    int64_t max_bytes = 0;
    for (const auto& planner : planners_) {
        planner->begin(step_);
        max_bytes = std::max(max_bytes, planner->plan().partial_bytes);
    }
    if (max_bytes > partials_size_) {
        partials_arena_ = std::make_unique<Arena>();
        partials_ = partials_arena_->allocate(static_cast<size_t>(max_bytes));
        partials_size_ = partials_ == nullptr ? 0 : max_bytes;
    }
    step_.set_partials(partials_);
    return max_bytes <= partials_size_;
}

}  // namespace hasten
