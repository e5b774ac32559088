// QK norm, rotary position embedding (RoPE: Su et al., 2021) and the write of keys and values into the KV cache.
#pragma once

#include "../simd/prefetch.h"
#include "kv_layout.h"
#include "norm.h"

namespace hasten::HASTEN_ISA {

// Normalises one head in place. Heads are adjacent without padding, so the last columns use partial loads and stores.
inline void norm_head(float* x, int32_t dim, NormKind kind, const float* weight, const float* bias, float eps) {
    alignas(64) float copy[kMaxHeadDim];
    for (int32_t i = 0; i < dim; i += 16) store(copy + i, load_partial(x + i, dim - i < 16 ? dim - i : 16));
    const bool is_layer_norm = kind == NormKind::layer;
    const float mean = is_layer_norm ? row_mean(copy, dim) : 0.0f;
    const F32x16 inverse = broadcast(is_layer_norm ? inverse_std(copy, dim, mean, eps) : inverse_rms(copy, dim, eps));
    for (int32_t i = 0; i < dim; i += 16) {
        const int n = dim - i < 16 ? dim - i : 16;
        F32x16 y = (load(copy + i) - broadcast(mean)) * inverse;
        if (weight != nullptr) y = y * load_partial(weight + i, n);
        if (bias != nullptr) y = y + load_partial(bias + i, n);
        store_partial(x + i, n, y);
    }
}

// Rotates the pairs (i, i + dim / 2) of one head in place.
inline void apply_rope(float* x, int32_t dim, const float* cos_sin) {
    const int32_t half = dim / 2;
    for (int32_t i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const F32x16 cosines = load_partial(cos_sin + i, n), sines = load_partial(cos_sin + half + i, n);
        const F32x16 first_half = load_partial(x + i, n), second_half = load_partial(x + half + i, n);
        store_partial(x + i, n, first_half * cosines - second_half * sines);
        store_partial(x + half + i, n, second_half * cosines + first_half * sines);
    }
}

// Quantises one head of keys or values to int8 with zeros up to a multiple of 16. Returns its scale.
inline float quantize_head(const float* x, int32_t dim, int8_t* out) {
    AbsMaxRange range;
    for (int32_t i = 0; i < dim; i += 16) range.add(load_partial(x + i, dim - i < 16 ? dim - i : 16));
    const QuantScale quant(range.absmax());
    for (int32_t i = 0; i < dim; i += 16) {
        store_s8(out + i, load_partial(x + i, dim - i < 16 ? dim - i : 16) * broadcast(quant.inverse));
    }
    return quant.scale;
}

// The panel, among all panels of a layer, and the lane of one slot.
struct KvPanelSlot {
    int64_t panel;
    int lane;
};

inline void write_key(const KvLayer& kv, const KvLayout& layout, KvPanelSlot slot, const float* key) {
    uint8_t* panel = kv.keys + slot.panel * layout.key_bytes;
    const int32_t dim = kv.head_dim;
    if (kv.dtype == Dtype::f32) {
        float* lane = reinterpret_cast<float*>(panel) + slot.lane;
        for (int32_t i = 0; i < dim; ++i) lane[i * kLanes] = key[i];
        if (dim % 2 != 0) lane[dim * kLanes] = 0.0f;
    } else if (kv.dtype == Dtype::int8) {
        alignas(64) int8_t values[kMaxHeadDim] = {};
        kv.key_scales[slot.panel * kLanes + slot.lane] = quantize_head(key, dim, values);
        for (int32_t i = 0; i < dim; i += 4) {
            uint32_t quad;
            __builtin_memcpy(&quad, values + i, 4);
            quad ^= 0x80808080u;  // + 128, as unsigned bytes
            __builtin_memcpy(panel + i * kLanes + 4 * slot.lane, &quad, 4);
        }
    } else {
        alignas(64) uint16_t values[kMaxHeadDim];
        for (int32_t i = 0; i < dim; i += 16) {
            const F32x16 x = load_partial(key + i, dim - i < 16 ? dim - i : 16);
            kv.dtype == Dtype::bf16 ? store_bf16(values + i, x) : store_f16(values + i, x);
        }
        uint16_t* out = reinterpret_cast<uint16_t*>(panel);
        if (kv.dtype == Dtype::f16) {
            for (int32_t i = 0; i < layout.key_dim; ++i) out[i * kLanes + slot.lane] = values[i];
        } else {
            for (int32_t i = 0; i < dim; i += 2) __builtin_memcpy(out + i * kLanes + 2 * slot.lane, values + i, 4);
        }
    }
}

inline void write_value(const KvLayer& kv, const KvLayout& layout, KvPanelSlot slot, const float* value) {
    const int64_t row_bytes = layout.value_bytes / kLanes;
    uint8_t* row = kv.values + slot.panel * layout.value_bytes + slot.lane * row_bytes;
    if (kv.dtype == Dtype::int8) {
        kv.value_scales[slot.panel * kLanes + slot.lane] = quantize_head(value, kv.head_dim, reinterpret_cast<int8_t*>(row));
        return;
    }
    for (int32_t i = 0; i < kv.head_dim; i += 16) {
        const F32x16 x = load_partial(value + i, kv.head_dim - i < 16 ? kv.head_dim - i : 16);
        if (kv.dtype == Dtype::f32)
            store(reinterpret_cast<float*>(row) + i, x);
        else if (kv.dtype == Dtype::bf16)
            store_bf16(reinterpret_cast<uint16_t*>(row) + i, x);
        else
            store_f16(reinterpret_cast<uint16_t*>(row) + i, x);
    }
}

// Prefetches the cache lines that the keys and values of a slot are written to. A key is spread over all lines of its panels, and
// without prefetch the store misses wait for memory one by one.
inline void prefetch_kv_slot(const KvLayer& kv, const KvLayout& layout, int64_t block, int64_t slot) {
    const int64_t row_bytes = layout.value_bytes / kLanes;
    for (int32_t h = 0; h < kv.kv_heads; ++h) {
        const int64_t panel = (block * kv.kv_heads + h) * layout.panels + slot / kLanes;
        const uint8_t* keys = kv.keys + panel * layout.key_bytes;
        const uint8_t* values = kv.values + panel * layout.value_bytes + slot % kLanes * row_bytes;
        for (int64_t i = 0; i < layout.key_bytes; i += 64) prefetch_to_write(keys + i);
        for (int64_t i = 0; i < row_bytes; i += 64) prefetch_to_write(values + i);
    }
}

inline void rope_and_cache_token(const RopeAndCacheTask& task, const KvLayout& layout, int64_t t) {
    const int32_t dim = task.head_dim;
    const KvLayer& kv = *task.kv;
    float* row = task.qkv.data + t * task.qkv.stride;
    const float* cos_sin = task.cos_sin != nullptr ? task.cos_sin + t * dim : nullptr;
    const int64_t block = task.slot_mapping[t] / kv.block_size, slot = task.slot_mapping[t] % kv.block_size;
    if (t == task.begin || slot % kLanes == 0 || task.slot_mapping[t] != task.slot_mapping[t - 1] + 1)
        prefetch_kv_slot(kv, layout, block, slot);
    for (int32_t h = 0; h < task.heads + task.kv_heads; ++h) {
        float* head = row + static_cast<int64_t>(h) * dim;
        const bool is_query = h < task.heads;
        if (task.norm != NormKind::none) {
            norm_head(head, dim, task.norm, is_query ? task.q_weight : task.k_weight, is_query ? task.q_bias : task.k_bias,
                      task.eps);
        }
        if (cos_sin != nullptr) apply_rope(head, dim, cos_sin);
    }
    for (int32_t h = 0; h < task.kv_heads; ++h) {
        const KvPanelSlot kv_slot{(block * kv.kv_heads + h) * layout.panels + slot / kLanes, static_cast<int>(slot % kLanes)};
        const float* key = row + static_cast<int64_t>(task.heads + h) * dim;
        write_key(kv, layout, kv_slot, key);
        write_value(kv, layout, kv_slot, key + static_cast<int64_t>(task.kv_heads) * dim);
    }
}

inline void rope_and_cache(const RopeAndCacheTask& task) {
    const KvLayout layout(*task.kv);
    for (int64_t t = task.begin; t < task.end; ++t) rope_and_cache_token(task, layout, t);
}

}  // namespace hasten::HASTEN_ISA
