// The paged KV cache: memory of keys, values and scales of every layer, in the layout of KvLayer.
#pragma once

#include <deque>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace hasten {

// Bytes of one block of one layer.
struct KvBlockSize {
    int64_t keys, values, scales;  // scales: of keys, and the same again of values
    int64_t total() const { return keys + values + 2 * scales; }
};
KvBlockSize kv_block_size(Dtype dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size);

// The slot of one token.
struct KvSlot {
    int32_t block, slot;
};

class KvPool {
public:
    KvPool(int32_t num_blocks, int32_t block_size) : num_blocks_(num_blocks), block_size_(block_size) {}

    // Returns the index of the new layer, or HASTEN_OUT_OF_MEMORY.
    int32_t add_layer(int32_t group, Dtype dtype, int32_t kv_heads, int32_t head_dim);
    void copy_block(int32_t group, int32_t source, int32_t target);
    void move_token(int32_t group, KvSlot source, KvSlot target);
    // Copies whole blocks of one layer: keys, values, scales of keys, scales of values.
    void read_blocks(int32_t layer, const int64_t* blocks, int64_t count, uint8_t* out) const;
    void write_blocks(int32_t layer, const int64_t* blocks, int64_t count, const uint8_t* in);

    int32_t num_layers() const { return static_cast<int32_t>(layers_.size()); }
    const KvLayer& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
    int32_t group_of(int32_t index) const { return groups_[static_cast<size_t>(index)]; }
    int32_t num_blocks() const { return num_blocks_; }
    int32_t block_size() const { return block_size_; }

private:
    const int32_t num_blocks_, block_size_;
    Arena arena_;
    std::deque<KvLayer> layers_;   // instructions point to them
    std::vector<int32_t> groups_;  // of each layer
};

}  // namespace hasten
