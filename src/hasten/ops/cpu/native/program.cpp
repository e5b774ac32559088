#include "program.h"

#include <algorithm>

namespace hasten {

Program::Program(const Kernels& kernels, ThreadPool& threads, const KvPool& kv, int32_t max_tokens)
    : kernels_(kernels), threads_(threads), kv_(kv), max_tokens_(max_tokens), step_(kv) {
    for (int thread = 0; thread < threads.threads(); ++thread) {
        scratch_.push_back(arena_.take(static_cast<size_t>(std::max(kLinearScratch, kAttentionScratch))));
    }
}

int32_t Program::add_rows(int32_t width) {
    const int64_t stride = row_bytes(width * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
    auto* data = static_cast<float*>(arena_.take(static_cast<size_t>(stride * max_tokens_) * sizeof(float)));
    if (data == nullptr) return -1;
    rows_.push_back({data, stride});
    return static_cast<int32_t>(rows_.size()) - 1;
}

int32_t Program::add_part(int32_t buffer, int32_t column) {
    const Rows whole = rows(buffer);
    rows_.push_back({whole.data + column, whole.stride, true});
    return static_cast<int32_t>(rows_.size()) - 1;
}

int32_t Program::add_quantized_rows(int32_t width) {
    QuantizedRows rows{};
    rows.stride = row_bytes(round_up(width, kQuantPad));
    const auto tokens = static_cast<size_t>(max_tokens_);
    rows.data = static_cast<int8_t*>(arena_.take(tokens * static_cast<size_t>(rows.stride)));
    rows.scales = static_cast<float*>(arena_.take(tokens * sizeof(float)));
    rows.sums = static_cast<int32_t*>(arena_.take(tokens * sizeof(int32_t)));
    if (rows.data == nullptr || rows.scales == nullptr || rows.sums == nullptr) return -1;
    quantized_.push_back(rows);
    return static_cast<int32_t>(quantized_.size()) - 1;
}

int32_t Program::add_rotary(int32_t half) {
    auto* table =
        static_cast<float*>(arena_.take(static_cast<size_t>(max_tokens_) * 2 * static_cast<size_t>(half) * sizeof(float)));
    if (table == nullptr) return -1;
    rotary_.push_back(table);
    return static_cast<int32_t>(rotary_.size()) - 1;
}

NarrowRows Program::narrow_rows(int32_t width) {
    const int64_t stride = narrow_stride(width);
    for (const NarrowRows& rows : narrow_) {
        if (rows.stride == stride) return rows;
    }
    auto* data = static_cast<uint16_t*>(arena_.take(static_cast<size_t>(stride * max_tokens_) * sizeof(uint16_t)));
    if (data == nullptr) return {nullptr, 0};
    narrow_.push_back({data, stride});
    return narrow_.back();
}

Rows Program::rows(int32_t buffer) const { return buffer < 0 ? Rows{nullptr, 0} : rows_[static_cast<size_t>(buffer)]; }

QuantizedRows Program::quantized_rows(int32_t buffer) const {
    return buffer < 0 ? QuantizedRows{} : quantized_[static_cast<size_t>(buffer)];
}

const AttentionCuts& Program::cuts_for(int32_t group, const AttentionTask& task) {
    for (const auto& cuts : cuts_) {
        if (cuts->fits(group, task)) return *cuts;
    }
    cuts_.push_back(std::make_unique<AttentionCuts>(kernels_, group, task));
    return *cuts_.back();
}

void Program::begin_layer() { layers_.push_back(instructions_.size()); }

void Program::begin_head() { head_ = static_cast<int64_t>(instructions_.size()); }

bool Program::run(const hasten_step& plan) {
    step_.begin(plan, threads_.threads());
    const size_t head = head_ < 0 ? instructions_.size() : static_cast<size_t>(head_);
    const auto layer = [&](int32_t index) {
        return static_cast<size_t>(index) < layers_.size() ? layers_[static_cast<size_t>(index)] : head;
    };
    ranges_.clear();
    ranges_.push_back({0, layer(0)});
    ranges_.push_back({layer(plan.first_layer), layer(plan.last_layer)});
    if (plan.num_logits > 0) ranges_.push_back({head, instructions_.size()});
    if (!prepare_memory()) return false;
    threads_.run(
        [](void* context, int thread) {
            auto* program = static_cast<Program*>(context);
            for (const Range range : program->ranges_) program->run_range(range, thread);
        },
        this);
    return true;
}

void Program::run_range(Range range, int thread) {
    const Worker worker{thread, scratch_[static_cast<size_t>(thread)]};
    for (size_t i = range.begin; i < range.end;) {
        const Instruction& instruction = *instructions_[i];
        const int64_t items = instruction.items(step_);
        const size_t next = i + 1;
        size_t shared = next;  // the next instruction that is worth sharing
        while (shared < range.end && instructions_[shared]->items(step_) <= 1) ++shared;
        // What lies between is run by whoever finishes last, while the others wait anyway: a barrier less for each.
        threads_.share(
            items, [&](int64_t item) { instruction.run(step_, item, worker); },
            [&] {
                for (size_t j = next; j < shared; ++j) {
                    if (instructions_[j]->items(step_) == 1) instructions_[j]->run(step_, 0, worker);
                }
            });
        i = shared;
    }
}

bool Program::prepare_memory() {
    int64_t most = 0;
    for (const auto& cuts : cuts_) {
        cuts->begin(step_);
        most = std::max(most, cuts->plan().partial_bytes);
    }
    if (most > partials_size_) {
        partials_ = std::make_unique<Arena>();
        partials_data_ = partials_->take(static_cast<size_t>(most));
        partials_size_ = partials_data_ == nullptr ? 0 : most;
    }
    step_.set_partials(partials_data_);
    return most <= partials_size_;
}

}  // namespace hasten
