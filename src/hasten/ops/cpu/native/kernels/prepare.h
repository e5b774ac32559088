// Head norms, rotary embedding (Su et al., 2021) and the write of keys and values into the pool.
#pragma once

#include "../simd/prefetch.h"
#include "kv_view.h"
#include "norm.h"

namespace hasten::HASTEN_ISA {

// Norm of one head in place; its neighbours follow without padding, so the last columns are loaded and stored by count.
inline void norm_head(float* x, int32_t dim, NormKind kind, const float* weight, const float* bias, float eps) {
    alignas(64) float padded[kMaxHeadDim];
    for (int32_t i = 0; i < dim; i += 16) store(padded + i, load_first(x + i, dim - i < 16 ? dim - i : 16));
    const bool centered = kind == NormKind::layer;
    const float mean = centered ? mean_of(padded, dim) : 0.0f;
    const F16 inverse = broadcast(centered ? inverse_deviation(padded, dim, mean, eps) : inverse_rms(padded, dim, eps));
    for (int32_t i = 0; i < dim; i += 16) {
        const int n = dim - i < 16 ? dim - i : 16;
        F16 y = (load(padded + i) - broadcast(mean)) * inverse;
        if (weight != nullptr) y = y * load_first(weight + i, n);
        if (bias != nullptr) y = y + load_first(bias + i, n);
        store_first(x + i, n, y);
    }
}

// Turns the pairs (i, i + dim / 2) of one head in place.
inline void rotate_head(float* x, int32_t dim, const float* table) {
    const int32_t half = dim / 2;
    for (int32_t i = 0; i < half; i += 16) {
        const int n = half - i < 16 ? half - i : 16;
        const F16 cosine = load_first(table + i, n), sine = load_first(table + half + i, n);
        const F16 left = load_first(x + i, n), right = load_first(x + half + i, n);
        store_first(x + i, n, left * cosine - right * sine);
        store_first(x + half + i, n, right * cosine + left * sine);
    }
}

// scale of one head of keys or values, and its int8 values in `out`, which is padded with zeros to a multiple of 16.
inline float quantize_head(const float* x, int32_t dim, int8_t* out) {
    RowRange range;
    for (int32_t i = 0; i < dim; i += 16) range.add(load_first(x + i, dim - i < 16 ? dim - i : 16));
    const QuantScale quant(range.absmax());
    for (int32_t i = 0; i < dim; i += 16) {
        store_s8(out + i, load_first(x + i, dim - i < 16 ? dim - i : 16) * broadcast(quant.inverse));
    }
    return quant.scale;
}

// One token's place in a layer: the panel (of all panels of the layer) and the lane in it.
struct KvPlace {
    int64_t panel;
    int lane;
};

inline void write_key(const KvLayer& kv, const KvGeometry& geometry, KvPlace place, const float* key) {
    uint8_t* panel = kv.keys + place.panel * geometry.key_bytes;
    const int32_t dim = kv.head_dim;
    if (kv.dtype == Dtype::f32) {
        float* lane = reinterpret_cast<float*>(panel) + place.lane;
        for (int32_t i = 0; i < dim; ++i) lane[i * kLanes] = key[i];
    } else if (kv.dtype == Dtype::int8) {
        alignas(64) int8_t values[kMaxHeadDim] = {};
        kv.key_scales[place.panel * kLanes + place.lane] = quantize_head(key, dim, values);
        for (int32_t i = 0; i < dim; i += 4) {
            uint32_t four;
            __builtin_memcpy(&four, values + i, 4);
            four ^= 0x80808080u;  // + 128, as unsigned bytes
            __builtin_memcpy(panel + i * kLanes + 4 * place.lane, &four, 4);
        }
    } else {
        alignas(64) uint16_t values[kMaxHeadDim];
        for (int32_t i = 0; i < dim; i += 16) {
            const F16 x = load_first(key + i, dim - i < 16 ? dim - i : 16);
            kv.dtype == Dtype::bf16 ? store_bf16(values + i, x) : store_f16(values + i, x);
        }
        uint16_t* out = reinterpret_cast<uint16_t*>(panel);
        if (kv.dtype == Dtype::f16) {
            for (int32_t i = 0; i < dim; ++i) out[i * kLanes + place.lane] = values[i];
        } else {
            for (int32_t i = 0; i < dim; i += 2) __builtin_memcpy(out + i * kLanes + 2 * place.lane, values + i, 4);
        }
    }
}

inline void write_value(const KvLayer& kv, const KvGeometry& geometry, KvPlace place, const float* value) {
    const int64_t row_bytes = geometry.value_bytes / kLanes;
    uint8_t* row = kv.values + place.panel * geometry.value_bytes + place.lane * row_bytes;
    if (kv.dtype == Dtype::int8) {
        kv.value_scales[place.panel * kLanes + place.lane] = quantize_head(value, kv.head_dim, reinterpret_cast<int8_t*>(row));
        return;
    }
    for (int32_t i = 0; i < kv.head_dim; i += 16) {
        const F16 x = load_first(value + i, kv.head_dim - i < 16 ? kv.head_dim - i : 16);
        if (kv.dtype == Dtype::f32)
            store(reinterpret_cast<float*>(row) + i, x);
        else if (kv.dtype == Dtype::bf16)
            store_bf16(reinterpret_cast<uint16_t*>(row) + i, x);
        else
            store_f16(reinterpret_cast<uint16_t*>(row) + i, x);
    }
}

// Asks for the lines that the token's keys and values will be written to. A key is spread over all lines of its panels, and stores
// that miss wait for memory one after the other; asked for beforehand, the lines arrive together.
inline void fetch_places(const KvLayer& kv, const KvGeometry& geometry, int64_t block, int64_t slot) {
    const int64_t row_bytes = geometry.value_bytes / kLanes;
    for (int32_t h = 0; h < kv.kv_heads; ++h) {
        const int64_t panel = (block * kv.kv_heads + h) * geometry.panels + slot / kLanes;
        const uint8_t* keys = kv.keys + panel * geometry.key_bytes;
        const uint8_t* values = kv.values + panel * geometry.value_bytes + slot % kLanes * row_bytes;
        for (int64_t i = 0; i < geometry.key_bytes; i += 64) prefetch_to_write(keys + i);
        for (int64_t i = 0; i < row_bytes; i += 64) prefetch_to_write(values + i);
    }
}

inline void prepare_token(const PrepareTask& task, const KvGeometry& geometry, int64_t t) {
    const int32_t dim = task.head_dim;
    const KvLayer& kv = *task.kv;
    float* row = task.qkv.data + t * task.qkv.stride;
    const float* table = task.rotary != nullptr ? task.rotary + t * dim : nullptr;
    const int64_t block = task.slots[t] / kv.slots, slot = task.slots[t] % kv.slots;
    if (t == task.begin || slot % kLanes == 0 || task.slots[t] != task.slots[t - 1] + 1) fetch_places(kv, geometry, block, slot);
    for (int32_t h = 0; h < task.heads + task.kv_heads; ++h) {
        float* head = row + static_cast<int64_t>(h) * dim;
        const bool query = h < task.heads;
        if (task.norm != NormKind::none) {
            norm_head(head, dim, task.norm, query ? task.q_weight : task.k_weight, query ? task.q_bias : task.k_bias, task.eps);
        }
        if (table != nullptr) rotate_head(head, dim, table);
    }
    for (int32_t h = 0; h < task.kv_heads; ++h) {
        const KvPlace place{(block * kv.kv_heads + h) * geometry.panels + slot / kLanes, static_cast<int>(slot % kLanes)};
        const float* key = row + static_cast<int64_t>(task.heads + h) * dim;
        write_key(kv, geometry, place, key);
        write_value(kv, geometry, place, key + static_cast<int64_t>(task.kv_heads) * dim);
    }
}

inline void prepare(const PrepareTask& task) {
    const KvGeometry geometry(*task.kv);
    for (int64_t t = task.begin; t < task.end; ++t) prepare_token(task, geometry, t);
}

}  // namespace hasten::HASTEN_ISA
