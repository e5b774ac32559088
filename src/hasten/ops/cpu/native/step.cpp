#include "step.h"

#include <cassert>

namespace hasten {

void Step::begin(const hasten_step& arguments, int threads) {
    arguments_ = &arguments;
    threads_ = threads;
    const auto groups = static_cast<size_t>(arguments.num_groups), num_sequences = static_cast<size_t>(arguments.num_sequences);
    positions_.resize(static_cast<size_t>(arguments.num_tokens));
    sequences_.resize(groups);
    slot_mappings_.resize(groups);
    for (size_t group = 0; group < groups; ++group) {
        sequences_[group].resize(num_sequences);
        slot_mappings_[group].resize(positions_.size());
    }
    const int32_t block_size = pool_.block_size();
    for (size_t index = 0; index < num_sequences; ++index) {
        const int32_t* bounds = arguments.sequences + 3 * index;
        const int32_t begin = bounds[0], end = bounds[1], start = bounds[2];
        const bool has_tree = arguments.tree_mask != nullptr && begin < end && arguments.tree_mask[begin] != 0;
        assert(!has_tree || end - begin <= 64);
        for (int32_t t = begin; t < end; ++t) {
            const int32_t depth = has_tree ? __builtin_popcountll(arguments.tree_mask[t]) - 1 : t - begin;
            positions_[static_cast<size_t>(t)] = start + depth;
        }
        for (size_t group = 0; group < groups; ++group) {
            const int32_t* table = arguments.block_tables + 2 * (group * num_sequences + index);
            SequenceSpan& sequence = sequences_[group][index];
            sequence = {
                begin, end, start, table[1], arguments.block_ids + table[0], has_tree ? arguments.tree_mask + begin : nullptr};
            for (int32_t t = begin; t < end; ++t) {
                const int32_t position = start + t - begin;
                const int64_t block = sequence.block_table[position / block_size - sequence.first_block];
                slot_mappings_[group][static_cast<size_t>(t)] = block * block_size + position % block_size;
            }
        }
    }
}

}  // namespace hasten
