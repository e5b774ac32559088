#include "attention_planner.h"

namespace hasten {

bool AttentionPlanner::matches(int32_t group, const AttentionTask& task) const {
    const KvLayer &own = *task_.kv, &other = *task.kv;
    return group == group_ && task.heads == task_.heads && task.kv_heads == task_.kv_heads && task.head_dim == task_.head_dim &&
           task.window == task_.window && other.dtype == own.dtype && other.block_size == own.block_size;
}

void AttentionPlanner::begin(const Step& step) {
    partitions_.resize(static_cast<size_t>(step.num_sequences()));
    task_.sequences = step.sequences(group_);
    task_.num_sequences = step.num_sequences();
    task_.num_threads = step.threads();
    plan_.partitions = partitions_.data();
    kernels_.plan_attention(task_, plan_);
}

}  // namespace hasten
