// The memory behind the blocks: keys, values and scales of every layer, in the layout of KvLayer.
#pragma once

#include <vector>

#include "arena.h"
#include "kernels.h"

namespace hasten {

// Bytes of one block of one layer.
struct KvBlockSize {
    int64_t keys, values, scales;  // scales: of keys, and again of values
    int64_t total() const { return keys + values + 2 * scales; }
};
KvBlockSize kv_block_size(Dtype dtype, int32_t kv_heads, int32_t head_dim, int32_t slots);

// Where the keys and values of one token lie.
struct KvSlot {
    int32_t block, slot;
};

class KvPool {
public:
    KvPool(int32_t num_blocks, int32_t slots) : num_blocks_(num_blocks), slots_(slots) {}

    // The index of the new layer, or -1 when memory is refused.
    int32_t add_layer(int32_t group, Dtype dtype, int32_t kv_heads, int32_t head_dim);
    void copy(int32_t group, int32_t source, int32_t target);
    void move(int32_t group, KvSlot source, KvSlot target);

    const KvLayer& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
    int32_t group_of(int32_t index) const { return groups_[static_cast<size_t>(index)]; }
    int32_t num_groups() const;
    int32_t slots() const { return slots_; }

private:
    const int32_t num_blocks_, slots_;
    Arena arena_;
    std::vector<KvLayer> layers_;
    std::vector<int32_t> groups_;  // of each layer
};

}  // namespace hasten
