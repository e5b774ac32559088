#include "instruction.h"

#include <algorithm>
#include <cstring>

namespace hasten {

namespace {

constexpr int32_t kRowsEach = 16;

}  // namespace

RowItems cut_rows(const Step& step, Extent extent) {
    const int32_t rows = extent == Extent::tokens ? step.plan().num_tokens : step.plan().num_logits;
    const int32_t share = (rows + 4 * step.threads() - 1) / (4 * step.threads());
    return {rows, std::max(1, std::min(kRowsEach, share))};
}

void Norm::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, extent_);
    NormTask task = task_;
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.norm(task);
}

void Narrow::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, extent_);
    NarrowTask task = task_;
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.narrow(task);
}

void Activate::run(const Step& step, int64_t item, const Worker& worker) const {
    const RowItems items = cut_rows(step, extent_);
    ActivateTask task = task_;
    task.scratch = static_cast<float*>(worker.scratch);
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.activate(task);
}

LinearTask Linear::whole(const Step& step) const {
    LinearTask task = task_;
    task.rows = extent_ == Extent::tokens ? step.plan().num_tokens : step.plan().num_logits;
    if (task.out.data == nullptr) task.out = {step.plan().logits, step.plan().logits_stride};
    return task;
}

void Linear::run(const Step& step, int64_t item, const Worker& worker) const {
    const LinearTask task = whole(step);
    run_item(kernels_, task, cut(kernels_, task, step.threads()), item, worker.scratch);
}

int64_t Embed::items(const Step& step) const { return step.plan().first_layer > 0 ? 0 : cut_rows(step, Extent::tokens).count(); }

void Embed::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, Extent::tokens);
    kernels_.embed({&matrix_, by_position_ ? step.positions() : step.plan().token_ids, by_position_, out_, items.begin(item),
                    items.end(item)});
}

void Rotary::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, Extent::tokens);
    RotaryTask task = task_;
    task.positions = step.positions();
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.rotary(task);
}

void Prepare::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, Extent::tokens);
    PrepareTask task = task_;
    task.slots = step.slots(group_);
    task.begin = items.begin(item);
    task.end = items.end(item);
    kernels_.prepare(task);
}

void Attend::run(const Step& step, int64_t item, const Worker& worker) const {
    AttentionTask task = task_;
    task.rows = step.spans(group_);
    task.num_rows = step.plan().num_rows;
    task.num_threads = step.threads();
    task.plan = &cuts_.plan();
    task.partials = step.partials();
    if (merge_) {
        kernels_.merge(task, item);
    } else {
        kernels_.attend(task, item, worker.scratch);
    }
}

void Gather::run(const Step& step, int64_t item, const Worker&) const {
    const RowItems items = cut_rows(step, Extent::logits);
    for (int32_t row = items.begin(item); row < items.end(item); ++row) {
        std::memcpy(out_.data + row * out_.stride, x_.data + step.plan().logits_tokens[row] * x_.stride,
                    static_cast<size_t>(width_) * sizeof(float));
    }
}

}  // namespace hasten
