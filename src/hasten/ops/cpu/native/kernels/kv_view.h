// Where keys and values lie in the pool. Blocks are cut in panels of 16 slots; panels are numbered over the whole layer.
#pragma once

#include "../simd/math.h"

namespace hasten::HASTEN_ISA {

// The longest head that the kernels take.
constexpr int kMaxHeadDim = 512;

// Bytes of one panel: 16 keys, or 16 values.
struct KvGeometry {
    int32_t slots, panels;  // of a block; panels = ceil(slots / 16)
    int32_t key_dim;        // head_dim padded to the pack
    int32_t value_dim;      // head_dim padded to 16
    int64_t key_bytes, value_bytes;

    explicit KvGeometry(const KvLayer& kv) : slots(kv.slots), panels((kv.slots + kLanes - 1) / kLanes) {
        const int32_t pack = kv.dtype == Dtype::int8 ? 4 : kv.dtype == Dtype::bf16 ? 2 : 1;
        const int32_t size = kv.dtype == Dtype::int8 ? 1 : kv.dtype == Dtype::f32 ? 4 : 2;
        key_dim = (kv.head_dim + pack - 1) / pack * pack;
        value_dim = (kv.head_dim + kLanes - 1) / kLanes * kLanes;
        key_bytes = static_cast<int64_t>(key_dim) * kLanes * size;
        value_bytes = static_cast<int64_t>(value_dim) * kLanes * size;
    }

    // Panels are counted along a sequence: panel n holds positions from first_position(n), at most 16 of them.
    int64_t panel_of(int64_t position) const {
        return slots % kLanes == 0 ? position / kLanes : position / slots * panels + position % slots / kLanes;
    }
    int64_t first_position(int64_t panel) const {
        return slots % kLanes == 0 ? panel * kLanes : panel / panels * slots + panel % panels * kLanes;
    }
    int32_t positions_of(int64_t panel) const {
        if (slots % kLanes == 0) return kLanes;
        const int32_t left = slots - static_cast<int32_t>(panel % panels) * kLanes;
        return left < kLanes ? left : kLanes;
    }
};

}  // namespace hasten::HASTEN_ISA
