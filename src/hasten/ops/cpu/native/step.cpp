#include "step.h"

#include <algorithm>

namespace hasten {

bool Step::begin(const hasten_step& arguments, int threads) {
    arguments_ = &arguments;
    threads_ = threads;
    const auto groups = static_cast<size_t>(arguments.num_groups), num_sequences = static_cast<size_t>(arguments.num_sequences);
    const int32_t num_blocks = pool_.num_blocks();
    const bool blocks_exist = std::all_of(arguments.block_ids, arguments.block_ids + arguments.num_block_ids,
                                          [=](int32_t block) { return block >= 0 && block < num_blocks; });
    if (!blocks_exist) return false;
    positions_.resize(static_cast<size_t>(arguments.num_tokens));
    sequences_.resize(groups);
    slot_mappings_.resize(groups);
    for (size_t group = 0; group < groups; ++group) {
        sequences_[group].resize(num_sequences);
        slot_mappings_[group].resize(positions_.size());
    }
    int32_t end = 0;  // of the sequences so far
    for (size_t index = 0; index < num_sequences; ++index) {
        const int32_t* bounds = arguments.sequences + 3 * index;
        if (bounds[0] != end || bounds[1] < end || bounds[1] > arguments.num_tokens) return false;
        end = bounds[1];
        const bool has_tree = arguments.tree_mask != nullptr && bounds[0] < end && arguments.tree_mask[bounds[0]] != 0;
        const uint64_t* tree_mask = has_tree ? arguments.tree_mask + bounds[0] : nullptr;
        if (!set_positions(bounds, tree_mask)) return false;
        for (size_t group = 0; group < groups; ++group) {
            if (!set_slots(group, index, bounds, tree_mask)) return false;
        }
    }
    // Tokens without a sequence may only pass through the head.
    return end == arguments.num_tokens || (arguments.first_layer > 0 && arguments.first_layer == arguments.last_layer);
}

bool Step::set_positions(const int32_t* bounds, const uint64_t* tree_mask) {
    const int32_t begin = bounds[0], end = bounds[1], start = bounds[2];
    if (start < 0 || start > INT32_MAX - (end - begin) || (tree_mask != nullptr && end - begin > kMaxTreeTokens)) return false;
    for (int32_t t = begin; t < end; ++t) {
        if (tree_mask == nullptr) {
            positions_[static_cast<size_t>(t)] = start + t - begin;
            continue;
        }
        // A token sees itself and tokens before it.
        const uint64_t mask = tree_mask[t - begin], own = uint64_t{1} << (t - begin);
        if ((mask & own) == 0 || mask - own >= own) return false;
        positions_[static_cast<size_t>(t)] = start + __builtin_popcountll(mask) - 1;
    }
    return true;
}

bool Step::set_slots(size_t group, size_t index, const int32_t* bounds, const uint64_t* tree_mask) {
    const int32_t begin = bounds[0], end = bounds[1], start = bounds[2], block_size = pool_.block_size();
    const int32_t* table = arguments_->block_tables + 2 * (group * static_cast<size_t>(arguments_->num_sequences) + index);
    const int64_t first_entry = table[0], first_block = table[1];
    if (begin == end) {
        sequences_[group][index] = {begin, end, start, 0, arguments_->block_ids, nullptr};
        return true;
    }
    const int64_t last_entry = first_entry + (int64_t{start} + end - begin - 1) / block_size - first_block;
    if (first_entry < 0 || first_block < 0 || first_block > start / block_size || last_entry >= arguments_->num_block_ids)
        return false;
    SequenceSpan& sequence = sequences_[group][index];
    sequence = {begin, end, start, table[1], arguments_->block_ids + first_entry, tree_mask};
    for (int32_t t = begin; t < end; ++t) {
        const int32_t position = start + t - begin;
        const int64_t block = sequence.block_table[position / block_size - sequence.first_block];
        slot_mappings_[group][static_cast<size_t>(t)] = block * block_size + position % block_size;
    }
    return true;
}

}  // namespace hasten
