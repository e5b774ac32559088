// Sums of products in AMX tiles: up to 32 rows of activations by two panels of weights, and what else is done in the meantime.
#pragma once

#include "../simd/amx.h"
#include "panels.h"

namespace hasten::HASTEN_ISA {

constexpr int kAmxRows = kTileHeight;
constexpr int kAmxBlock = 2 * kAmxRows;

// Tiles 0 to 3: sums of two row blocks by two panels. 4, 5: activations, 6, 7: weights, both `depth` bytes deep.
inline void configure_tiles(int32_t rows, int depth) {
    shape_tiles(rows < kAmxRows ? rows : kAmxRows, rows > kAmxRows ? rows - kAmxRows : 1, depth);
}

// What is done while tiles are multiplied: asking, of every tile of weights, for `lines` lines from `first` on, `ahead` bytes
// further on.
struct TileAhead {
    int64_t ahead;
    int first, lines;

    template <int Panels>
    [[gnu::always_inline]] void at(const uint8_t* const (&weights)[2], int64_t /*step*/, int64_t line) const {
        for (int i = 0; i < lines; ++i) {
            const int64_t to = line + ahead + (first + i) * 64;
            prefetch_far(weights[0] + to);
            if constexpr (Panels == 2) prefetch_far(weights[1] + to);
        }
    }
};

// What sums begin with: [32][16] of 4 bytes for each panel, rows `stride` bytes and panels `panel` bytes apart; null: zeros.
struct TileStart {
    const void* at;
    int64_t stride, panel;
};

template <int Blocks, int Panels>
[[gnu::always_inline]] inline void start_tiles(TileStart start) {
    if (start.at == nullptr) {
        _tile_zero(0);
        if constexpr (Panels == 2) _tile_zero(1);
        if constexpr (Blocks == 2) _tile_zero(2);
        if constexpr (Blocks == 2 && Panels == 2) _tile_zero(3);
        return;
    }
    const uint8_t* upper = static_cast<const uint8_t*>(start.at);
    const uint8_t* lower = upper + kAmxRows * start.stride;
    _tile_loadd(0, upper, start.stride);
    if constexpr (Panels == 2) _tile_loadd(1, upper + start.panel, start.stride);
    if constexpr (Blocks == 2) _tile_loadd(2, lower, start.stride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_loadd(3, lower + start.panel, start.stride);
}

// Sums over `steps` tiles in depth, of 1 or 2 blocks of rows with 1 or 2 panels, added to `start`, into sums [32][Panels][16] (4
// bytes each). x: rows x_stride bytes apart; panel i: weights[i], contiguous. meanwhile: what is done beside each step.
// Bf16: else signed times unsigned bytes. Weights pass by the first-level cache, where the activations stay for the next panels.
template <bool Bf16, int Blocks, int Panels, class Meanwhile>
inline void multiply_tiles(const void* x, int64_t x_stride, const uint8_t* const (&weights)[2], int64_t steps, int depth,
                           const Meanwhile& meanwhile, TileStart start, void* sums) {
    const uint8_t* rows = static_cast<const uint8_t*>(x);
    settle_memory();
    start_tiles<Blocks, Panels>(start);
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t line = step * depth * kLanes;
        _tile_loadd(4, rows + step * depth, x_stride);
        _tile_stream_loadd(6, weights[0] + line, 64);
        if constexpr (Bf16)
            _tile_dpbf16ps(0, 4, 6);
        else
            _tile_dpbsud(0, 4, 6);
        if constexpr (Blocks == 2) {
            _tile_loadd(5, rows + kAmxRows * x_stride + step * depth, x_stride);
            if constexpr (Bf16)
                _tile_dpbf16ps(2, 5, 6);
            else
                _tile_dpbsud(2, 5, 6);
        }
        meanwhile.template at<Panels>(weights, step, line);
        if constexpr (Panels == 2) {
            _tile_stream_loadd(7, weights[1] + line, 64);
            if constexpr (Bf16)
                _tile_dpbf16ps(1, 4, 7);
            else
                _tile_dpbsud(1, 4, 7);
            if constexpr (Blocks == 2 && Bf16)
                _tile_dpbf16ps(3, 5, 7);
            else if constexpr (Blocks == 2)
                _tile_dpbsud(3, 5, 7);
        }
    }
    uint8_t* out = static_cast<uint8_t*>(sums);
    constexpr int64_t kStride = Panels * 64;
    _tile_stored(0, out, kStride);
    if constexpr (Panels == 2) _tile_stored(1, out + 64, kStride);
    if constexpr (Blocks == 2) _tile_stored(2, out + kAmxRows * kStride, kStride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_stored(3, out + kAmxRows * kStride + 64, kStride);
    settle_memory();
}

template <bool Bf16, class Meanwhile>
inline void multiply_tiles(int32_t rows, int panels, const void* x, int64_t x_stride, const uint8_t* const (&weights)[2],
                           int64_t steps, int depth, const Meanwhile& meanwhile, TileStart start, void* sums) {
    if (rows > kAmxRows) {
        if (panels == 2) return multiply_tiles<Bf16, 2, 2>(x, x_stride, weights, steps, depth, meanwhile, start, sums);
        return multiply_tiles<Bf16, 2, 1>(x, x_stride, weights, steps, depth, meanwhile, start, sums);
    }
    if (panels == 2) return multiply_tiles<Bf16, 1, 2>(x, x_stride, weights, steps, depth, meanwhile, start, sums);
    return multiply_tiles<Bf16, 1, 1>(x, x_stride, weights, steps, depth, meanwhile, start, sums);
}

// Calls body(row, size) for rows in blocks of `block`, with the tiles configured for each.
template <class Body>
[[gnu::always_inline]] inline void for_each_tile_block(int32_t rows, int32_t block, int depth, Body body) {
    int32_t configured = 0;
    for (int32_t row = 0; row < rows; row += block) {
        const int32_t size = rows - row < block ? rows - row : block;
        if (size != configured) configure_tiles(configured = size, depth);
        body(row, size);
    }
}

}  // namespace hasten::HASTEN_ISA
