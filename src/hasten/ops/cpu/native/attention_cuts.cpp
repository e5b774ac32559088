#include "attention_cuts.h"

namespace hasten {

bool AttentionCuts::fits(int32_t group, const AttentionTask& task) const {
    const KvLayer &own = *task_.kv, &other = *task.kv;
    return group == group_ && task.heads == task_.heads && task.kv_heads == task_.kv_heads && task.head_dim == task_.head_dim &&
           task.window == task_.window && other.dtype == own.dtype && other.slots == own.slots;
}

void AttentionCuts::begin(const Step& step) {
    cuts_.resize(static_cast<size_t>(step.plan().num_rows));
    task_.rows = step.spans(group_);
    task_.num_rows = step.plan().num_rows;
    task_.num_threads = step.threads();
    plan_.cuts = cuts_.data();
    kernels_.plan_attention(task_, plan_);
}

}  // namespace hasten
