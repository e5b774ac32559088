#include "step.h"

#include <cassert>

namespace hasten {

void Step::begin(const hasten_step& plan, int threads) {
    plan_ = &plan;
    threads_ = threads;
    const auto groups = static_cast<size_t>(plan.num_groups), rows = static_cast<size_t>(plan.num_rows);
    positions_.resize(static_cast<size_t>(plan.num_tokens));
    spans_.resize(groups);
    slots_.resize(groups);
    for (size_t group = 0; group < groups; ++group) {
        spans_[group].resize(rows);
        slots_[group].resize(positions_.size());
    }
    const int32_t size = pool_.slots();
    for (size_t row = 0; row < rows; ++row) {
        const int32_t* bounds = plan.rows + 3 * row;
        const int32_t begin = bounds[0], end = bounds[1], start = bounds[2];
        const bool branches = plan.tree != nullptr && begin < end && plan.tree[begin] != 0;
        assert(!branches || end - begin <= 64);
        for (int32_t t = begin; t < end; ++t) {
            const int32_t before = branches ? __builtin_popcountll(plan.tree[t]) - 1 : t - begin;
            positions_[static_cast<size_t>(t)] = start + before;
        }
        for (size_t group = 0; group < groups; ++group) {
            const int32_t* table = plan.tables + 2 * (group * rows + row);
            RowSpan& span = spans_[group][row];
            span = {begin, end, start, table[1], plan.blocks + table[0], branches ? plan.tree + begin : nullptr};
            for (int32_t t = begin; t < end; ++t) {
                const int32_t place = start + t - begin;
                const int64_t block = span.blocks[place / size - span.first_block];
                slots_[group][static_cast<size_t>(t)] = block * size + place % size;
            }
        }
    }
}

}  // namespace hasten
