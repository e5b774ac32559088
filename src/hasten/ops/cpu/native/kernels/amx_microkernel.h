// The AMX micro-kernel of matrix products: up to 32 rows of activations times two panels of weights.
#pragma once

#include "../simd/amx.h"
#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

constexpr int kAmxBlockRows = 2 * kAmxTileRows;

// Tiles 0 to 3: sums of two row blocks and two panels. 4, 5: activations. 6, 7: weights. Tiles 4 to 7 are `depth` bytes deep.
inline void configure_gemm_tiles(int32_t rows, int depth) {
    configure_tiles(rows < kAmxTileRows ? rows : kAmxTileRows, rows > kAmxTileRows ? rows - kAmxTileRows : 1, depth);
}

// Prefetch interleaved with the tile instructions: num_lines cache lines of every weight tile from first_line on, next_bytes ahead.
struct TilePrefetch {
    int64_t next_bytes;
    int first_line, num_lines;

    template <int Panels>
    [[gnu::always_inline]] void step(const uint8_t* const (&weights)[2], int64_t /*step*/, int64_t offset) const {
        for (int i = 0; i < num_lines; ++i) {
            const int64_t to = offset + next_bytes + (first_line + i) * 64;
            prefetch_far(weights[0] + to);
            if constexpr (Panels == 2) prefetch_far(weights[1] + to);
        }
    }
};

// Initial sums: [32][16] of 4 bytes for each panel, rows `stride` bytes and panels `panel` bytes apart. sums null: zeros.
struct InitialSums {
    const void* sums;
    int64_t stride, panel;
};

template <int Blocks, int Panels>
[[gnu::always_inline]] inline void load_initial_sums(InitialSums initial) {
    if (initial.sums == nullptr) {
        _tile_zero(0);
        if constexpr (Panels == 2) _tile_zero(1);
        if constexpr (Blocks == 2) _tile_zero(2);
        if constexpr (Blocks == 2 && Panels == 2) _tile_zero(3);
        return;
    }
    const uint8_t* upper = static_cast<const uint8_t*>(initial.sums);
    const uint8_t* lower = upper + kAmxTileRows * initial.stride;
    _tile_loadd(0, upper, initial.stride);
    if constexpr (Panels == 2) _tile_loadd(1, upper + initial.panel, initial.stride);
    if constexpr (Blocks == 2) _tile_loadd(2, lower, initial.stride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_loadd(3, lower + initial.panel, initial.stride);
}

// Computes sums [32][Panels][16] of 4 bytes, added to `initial`, over `steps` tiles in depth. Blocks: row blocks of 16. x: rows
// x_stride bytes apart. weights[i]: panel i, contiguous. interleaved.step runs beside each step. Bf16 false: signed times unsigned
// bytes.
//
// Weights are loaded with a streaming hint, so that the activations stay in the first-level cache for the next panels.
template <bool Bf16, int Blocks, int Panels, class Interleaved>
inline void tile_microkernel(const void* x, int64_t x_stride, const uint8_t* const (&weights)[2], int64_t steps, int depth,
                             const Interleaved& interleaved, InitialSums initial, void* sums) {
    const uint8_t* rows = static_cast<const uint8_t*>(x);
    compiler_barrier();
    load_initial_sums<Blocks, Panels>(initial);
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t offset = step * depth * kLanes;
        _tile_loadd(4, rows + step * depth, x_stride);
        _tile_stream_loadd(6, weights[0] + offset, 64);
        if constexpr (Bf16)
            _tile_dpbf16ps(0, 4, 6);
        else
            _tile_dpbsud(0, 4, 6);
        if constexpr (Blocks == 2) {
            _tile_loadd(5, rows + kAmxTileRows * x_stride + step * depth, x_stride);
            if constexpr (Bf16)
                _tile_dpbf16ps(2, 5, 6);
            else
                _tile_dpbsud(2, 5, 6);
        }
        interleaved.template step<Panels>(weights, step, offset);
        if constexpr (Panels == 2) {
            _tile_stream_loadd(7, weights[1] + offset, 64);
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
    if constexpr (Blocks == 2) _tile_stored(2, out + kAmxTileRows * kStride, kStride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_stored(3, out + kAmxTileRows * kStride + 64, kStride);
    compiler_barrier();
}

template <bool Bf16, class Interleaved>
inline void tile_microkernel(int32_t rows, int panels, const void* x, int64_t x_stride, const uint8_t* const (&weights)[2],
                             int64_t steps, int depth, const Interleaved& interleaved, InitialSums initial, void* sums) {
    if (rows > kAmxTileRows) {
        if (panels == 2) return tile_microkernel<Bf16, 2, 2>(x, x_stride, weights, steps, depth, interleaved, initial, sums);
        return tile_microkernel<Bf16, 2, 1>(x, x_stride, weights, steps, depth, interleaved, initial, sums);
    }
    if (panels == 2) return tile_microkernel<Bf16, 1, 2>(x, x_stride, weights, steps, depth, interleaved, initial, sums);
    return tile_microkernel<Bf16, 1, 1>(x, x_stride, weights, steps, depth, interleaved, initial, sums);
}

// Calls body(row, size) for blocks of `block` rows, with the tiles configured for each.
template <class Body>
[[gnu::always_inline]] inline void for_each_amx_row_block(int32_t rows, int32_t block, int depth, Body body) {
    int32_t configured = 0;
    for (int32_t row = 0; row < rows; row += block) {
        const int32_t size = rows - row < block ? rows - row : block;
        if (size != configured) configure_gemm_tiles(configured = size, depth);
        body(row, size);
    }
}

}  // namespace hasten::HASTEN_ISA
