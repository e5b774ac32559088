// How the attention of a step is cut into items: worked out once for all layers of one shape.
#pragma once

#include <vector>

#include "step.h"

namespace hasten {

class AttentionCuts {
public:
    // `task` names one layer of the shape; all of them read the blocks of one group.
    AttentionCuts(const Kernels& kernels, int32_t group, const AttentionTask& task)
        : kernels_(kernels), group_(group), task_(task) {}

    // Whether a layer of this group and task is cut the same way in every step.
    bool fits(int32_t group, const AttentionTask& task) const;

    void begin(const Step& step);
    const AttentionPlan& plan() const { return plan_; }

private:
    const Kernels& kernels_;
    int32_t group_;
    AttentionTask task_;
    std::vector<RowCut> cuts_;
    AttentionPlan plan_{};
};

}  // namespace hasten
