// Layout of keys and values in the paged pool. A block is divided into panels of 16 slots, numbered over the whole layer.
#pragma once

#include "../simd/vector_math.h"

namespace hasten::HASTEN_ISA {

// Geometry of a layer's blocks. key_bytes, value_bytes: of one panel, 16 keys or 16 values.
struct KvLayout {
    int32_t block_size, panels;  // panels of a block: ceil(block_size / 16)
    int32_t key_dim;             // head_dim padded as kv_key_dim says
    int32_t value_dim;           // head_dim padded to 16
    int64_t key_bytes, value_bytes;

    explicit KvLayout(const KvLayer& kv) : block_size(kv.block_size), panels((kv.block_size + kLanes - 1) / kLanes) {
        const int32_t size = kv.dtype == Dtype::int8 ? 1 : kv.dtype == Dtype::f32 ? 4 : 2;
        key_dim = static_cast<int32_t>(kv_key_dim(kv.dtype, kv.head_dim));
        value_dim = (kv.head_dim + kLanes - 1) / kLanes * kLanes;
        key_bytes = static_cast<int64_t>(key_dim) * kLanes * size;
        value_bytes = static_cast<int64_t>(value_dim) * kLanes * size;
    }

    // Panels are numbered along a sequence: panel n holds at most 16 positions from first_position(n) on.
    int64_t panel_of(int64_t position) const {
        return block_size % kLanes == 0 ? position / kLanes : position / block_size * panels + position % block_size / kLanes;
    }
    int64_t first_position(int64_t panel) const {
        return block_size % kLanes == 0 ? panel * kLanes : panel / panels * block_size + panel % panels * kLanes;
    }
    int32_t positions_of(int64_t panel) const {
        if (block_size % kLanes == 0) return kLanes;
        const int32_t remaining = block_size - static_cast<int32_t>(panel % panels) * kLanes;
        return remaining < kLanes ? remaining : kLanes;
    }
};

}  // namespace hasten::HASTEN_ISA
