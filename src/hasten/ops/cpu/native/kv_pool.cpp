#include "kv_pool.h"

#include <cstring>

#include "hasten.h"
#include "matrix.h"

namespace hasten {

namespace {

int64_t element_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : dtype == Dtype::int8 ? 1 : 2; }

// Calls body(memory, bytes) for each part of a block: keys, values, scales of keys, scales of values.
template <class Body>
void for_parts(const KvLayer& layer, int64_t block, Body body) {
    const KvBlockSize size = kv_block_size(layer.dtype, layer.kv_heads, layer.head_dim, layer.block_size);
    const auto part = [&](void* base, int64_t bytes) {
        if (bytes > 0) body(static_cast<uint8_t*>(base) + block * bytes, static_cast<size_t>(bytes));
    };
    part(layer.keys, size.keys);
    part(layer.values, size.values);
    part(layer.key_scales, size.scales);
    part(layer.value_scales, size.scales);
}

}  // namespace

KvBlockSize kv_block_size(Dtype dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size) {
    const int64_t lanes = round_up(block_size, kLanes);
    const int64_t bytes = element_bytes(dtype);
    KvBlockSize size{};
    size.keys = kv_heads * lanes * kv_key_dim(dtype, head_dim) * bytes;
    size.values = kv_heads * lanes * round_up(head_dim, kLanes) * bytes;
    size.scales = dtype == Dtype::int8 ? kv_heads * lanes * int64_t{sizeof(float)} : 0;
    return size;
}

int32_t KvPool::add_layer(int32_t group, Dtype dtype, int32_t kv_heads, int32_t head_dim) {
    const KvBlockSize size = kv_block_size(dtype, kv_heads, head_dim, block_size_);
    const auto allocate = [&](int64_t bytes) -> void* {
        int64_t total;
        return __builtin_mul_overflow(bytes, num_blocks_, &total) ? nullptr : arena_.allocate(static_cast<size_t>(total));
    };
    KvLayer layer{};
    layer.dtype = dtype;
    layer.kv_heads = kv_heads;
    layer.head_dim = head_dim;
    layer.block_size = block_size_;
    layer.keys = static_cast<uint8_t*>(allocate(size.keys));
    layer.values = static_cast<uint8_t*>(allocate(size.values));
    if (layer.keys == nullptr || layer.values == nullptr) return HASTEN_OUT_OF_MEMORY;
    if (size.scales > 0) {
        layer.key_scales = static_cast<float*>(allocate(size.scales));
        layer.value_scales = static_cast<float*>(allocate(size.scales));
        if (layer.key_scales == nullptr || layer.value_scales == nullptr) return HASTEN_OUT_OF_MEMORY;
    }
    layers_.push_back(layer);
    groups_.push_back(group);
    return static_cast<int32_t>(layers_.size()) - 1;
}

void KvPool::copy_block(int32_t group, int32_t source, int32_t target) {
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (groups_[i] != group) continue;
        for_parts(layers_[i], target, [&](uint8_t* memory, size_t bytes) {
            std::memmove(memory, memory + (int64_t{source} - target) * static_cast<int64_t>(bytes), bytes);
        });
    }
}

void KvPool::move_token(int32_t group, KvSlot source, KvSlot target) {
    const int64_t panels = (block_size_ + kLanes - 1) / kLanes;
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (groups_[i] != group) continue;
        const KvLayer& layer = layers_[i];
        const KvBlockSize size = kv_block_size(layer.dtype, layer.kv_heads, layer.head_dim, block_size_);
        // A panel of one head holds `runs` runs of 16 slots, `bytes` for each slot.
        const auto move = [&](void* base, int64_t block_bytes, int64_t runs) {
            if (block_bytes == 0) return;
            const int64_t panel_bytes = block_bytes / (layer.kv_heads * panels), bytes = panel_bytes / (runs * kLanes);
            const auto address = [&](KvSlot location, int64_t head) {
                const int64_t panel = (int64_t{location.block} * layer.kv_heads + head) * panels + location.slot / kLanes;
                return static_cast<uint8_t*>(base) + panel * panel_bytes + location.slot % kLanes * bytes;
            };
            for (int64_t head = 0; head < layer.kv_heads; ++head) {
                const uint8_t* from = address(source, head);
                uint8_t* to = address(target, head);
                for (int64_t run = 0; run < runs; ++run) {
                    const int64_t offset = run * kLanes * bytes;
                    std::memmove(to + offset, from + offset, static_cast<size_t>(bytes));
                }
            }
        };
        move(layer.keys, size.keys, kv_key_dim(layer.dtype, layer.head_dim) / kv_key_pack(layer.dtype));
        move(layer.values, size.values, 1);
        move(layer.key_scales, size.scales, 1);
        move(layer.value_scales, size.scales, 1);
    }
}

void KvPool::read_blocks(int32_t index, const int64_t* blocks, int64_t count, uint8_t* out) const {
    for (int64_t i = 0; i < count; ++i) {
        for_parts(layer(index), blocks[i], [&](const uint8_t* memory, size_t bytes) {
            std::memcpy(out, memory, bytes);
            out += bytes;
        });
    }
}

void KvPool::write_blocks(int32_t index, const int64_t* blocks, int64_t count, const uint8_t* in) {
    for (int64_t i = 0; i < count; ++i) {
        for_parts(layer(index), blocks[i], [&](uint8_t* memory, size_t bytes) {
            std::memcpy(memory, in, bytes);
            in += bytes;
        });
    }
}

}  // namespace hasten
