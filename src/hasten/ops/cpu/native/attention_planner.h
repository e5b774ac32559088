// The work partition of attention in one step, computed once for all layers of one shape.
#pragma once

#include <vector>

#include "step.h"

namespace hasten {

class AttentionPlanner {
public:
    // `task` is that of any layer of the shape. All these layers read the blocks of one KV group.
    AttentionPlanner(const Kernels& kernels, int32_t group, const AttentionTask& task)
        : kernels_(kernels), group_(group), task_(task) {}

    // Returns whether a layer of this group and task has the same work partition in every step.
    bool matches(int32_t group, const AttentionTask& task) const;

    void begin(const Step& step);
    const AttentionPlan& plan() const { return plan_; }

private:
    const Kernels& kernels_;
    int32_t group_;
    AttentionTask task_;
    std::vector<SequencePartition> partitions_;
    AttentionPlan plan_{};
};

}  // namespace hasten
