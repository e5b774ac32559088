#include "instruction.h"

#include <algorithm>
#include <cstring>

namespace hasten {

namespace {

constexpr int32_t kMaxRowsPerItem = 16;

}  // namespace

RowPartition partition_rows(const Step& step, RowScope scope) {
    const int32_t rows = step.rows(scope);
    const int32_t rows_per_share = (rows + 4 * step.threads() - 1) / (4 * step.threads());
    return {rows, std::max(1, std::min(kMaxRowsPerItem, rows_per_share))};
}

void Norm::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, scope_);
    NormTask task = task_;
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.norm(task);
}

void ConvertToBf16::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, scope_);
    ConvertToBf16Task task = task_;
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.convert_to_bf16(task);
}

void ConvertToInt16::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, scope_);
    ConvertToInt16Task task = task_;
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.convert_to_int16(task);
}

void Activate::run(const Step& step, int64_t item, void* scratch) const {
    const RowPartition items = partition_rows(step, scope_);
    ActivateTask task = task_;
    task.scratch = static_cast<float*>(scratch);
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.activate(task);
}

LinearTask Linear::bound_task(const Step& step) const {
    LinearTask task = task_;
    task.rows = step.rows(scope_);
    if (task.out.data == nullptr) task.out = {step.arguments().logits, step.arguments().logits_stride};
    return task;
}

void Linear::run(const Step& step, int64_t item, void* scratch) const {
    const LinearTask task = bound_task(step);
    run_linear_item(kernels_, task, partition_linear(kernels_, task, step.threads()), item, scratch);
}

int64_t Embed::items(const Step& step) const { return embeds(step) ? partition_rows(step, RowScope::tokens).count() : 0; }

void Embed::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, RowScope::tokens);
    kernels_.embed({&matrix_, by_position_ ? step.positions() : step.arguments().token_ids, by_position_, out_, items.begin(item),
                    items.end(item)});
}

void RotaryTable::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, RowScope::tokens);
    RotaryTableTask task = task_;
    task.positions = step.positions();
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.rotary_table(task);
}

void RopeAndCache::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, RowScope::tokens);
    RopeAndCacheTask task = task_;
    task.slot_mapping = step.slot_mapping(group_);
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.rope_and_cache(task);
}

void Attend::run(const Step& step, int64_t item, void* scratch) const {
    AttentionTask task = task_;
    task.sequences = step.sequences(group_);
    task.num_sequences = step.num_sequences();
    task.num_threads = step.threads();
    task.plan = &planner_.plan();
    task.partials = step.partials();
    if (merge_) {
        kernels_.merge_splits(task, item);
    } else {
        kernels_.attend(task, item, scratch);
    }
}

void Gather::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, RowScope::logits);
    for (int32_t row = items.begin(item); row < items.end(item); ++row) {
        std::memcpy(out_.data + row * out_.stride, x_.data + step.arguments().logits_indices[row] * x_.stride,
                    static_cast<size_t>(width_) * sizeof(float));
    }
}

void SelectColumns::run(const Step& step, int64_t item, void*) const {
    const RowPartition items = partition_rows(step, scope_);
    for (int32_t row = items.begin(item); row < items.end(item); ++row) {
        const float* from = x_.data + row * x_.stride;
        float* to = out_.data + row * out_.stride;
        for (const int32_t column : columns_) *to++ = from[column];
    }
}

}  // namespace hasten
