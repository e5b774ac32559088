// Products of many rows in AMX tiles; few rows, and the types that tiles do not multiply, take the forms of linear.h.
//
// int8 and int4 with int8 activations give the bits of linear.h: the integer sums are exact. With bf16 weights the tiles round
// the activations to bf16 and sum in another order, so a row of a batch above kVectorRows differs from the same row below it.
//
// The caller has asked the system for the tile registers (arch_prctl ARCH_REQ_XCOMP_PERM); the tiles are configured and
// released inside each call.
#pragma once

#include "linear.h"

#ifdef HASTEN_EMULATE_AMX
#include "../simd/amx_emulation.h"
#endif

namespace hasten::HASTEN_ISA {

constexpr int kAmxRows = 16;  // of a tile
constexpr int kAmxBlock = 2 * kAmxRows;
constexpr int kVectorRows = 8;  // up to here tiles would be mostly empty, and weights stream

struct alignas(64) AmxConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 3: sums of two row blocks by two panels. 4, 5: activations, 6, 7: weights, both `depth` bytes deep.
inline void configure_tiles(int32_t rows, int depth) {
    AmxConfig config;
    const int32_t upper = rows < kAmxRows ? rows : kAmxRows;
    const int32_t lower = rows > kAmxRows ? rows - kAmxRows : 1;
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
        config.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : i == 0 || i == 1 || i == 4 ? upper : lower);
    }
    _tile_loadconfig(&config);
}

// Sums over `steps` tiles in depth, of 1 or 2 blocks of rows with 1 or 2 panels, into sums [32][Panels][16] (4 bytes each).
// x: rows x_stride bytes apart; panel i: weights[i], contiguous. Bf16: else signed times unsigned bytes.
template <bool Bf16, int Blocks, int Panels>
inline void multiply_tiles(const void* x, int64_t x_stride, const uint8_t* const* weights, int64_t steps, int depth, void* sums) {
    const uint8_t* rows = static_cast<const uint8_t*>(x);
    _tile_zero(0);
    if constexpr (Panels == 2) _tile_zero(1);
    if constexpr (Blocks == 2) _tile_zero(2);
    if constexpr (Blocks == 2 && Panels == 2) _tile_zero(3);
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t line = step * depth * kLanes;
        _tile_loadd(4, rows + step * depth, x_stride);
        _tile_loadd(6, weights[0] + line, 64);
        if constexpr (Blocks == 2) _tile_loadd(5, rows + kAmxRows * x_stride + step * depth, x_stride);
        if constexpr (Panels == 2) _tile_loadd(7, weights[1] + line, 64);
        for (int i = 0; i < depth / 4; ++i) {
            prefetch(weights[0] + line + i * 64 + kNearBytes);
            if constexpr (Panels == 2) prefetch(weights[1] + line + i * 64 + kNearBytes);
        }
        if constexpr (Bf16) {
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (Panels == 2) _tile_dpbf16ps(1, 4, 7);
            if constexpr (Blocks == 2) _tile_dpbf16ps(2, 5, 6);
            if constexpr (Blocks == 2 && Panels == 2) _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbsud(0, 4, 6);
            if constexpr (Panels == 2) _tile_dpbsud(1, 4, 7);
            if constexpr (Blocks == 2) _tile_dpbsud(2, 5, 6);
            if constexpr (Blocks == 2 && Panels == 2) _tile_dpbsud(3, 5, 7);
        }
    }
    uint8_t* out = static_cast<uint8_t*>(sums);
    constexpr int64_t kStride = Panels * 64;
    _tile_stored(0, out, kStride);
    if constexpr (Panels == 2) _tile_stored(1, out + 64, kStride);
    if constexpr (Blocks == 2) _tile_stored(2, out + kAmxRows * kStride, kStride);
    if constexpr (Blocks == 2 && Panels == 2) _tile_stored(3, out + kAmxRows * kStride + 64, kStride);
}

template <bool Bf16>
inline void multiply_tiles(int32_t rows, int panels, const void* x, int64_t x_stride, const uint8_t* const* weights, int64_t steps,
                           int depth, void* sums) {
    if (rows > kAmxRows) {
        if (panels == 2) return multiply_tiles<Bf16, 2, 2>(x, x_stride, weights, steps, depth, sums);
        return multiply_tiles<Bf16, 2, 1>(x, x_stride, weights, steps, depth, sums);
    }
    if (panels == 2) return multiply_tiles<Bf16, 1, 2>(x, x_stride, weights, steps, depth, sums);
    return multiply_tiles<Bf16, 1, 1>(x, x_stride, weights, steps, depth, sums);
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

inline void tiles_int8(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    for_each_set(task, 2, [&](const PanelSet& set) {
        const uint8_t* weights[2] = {set.data(matrix, 0), set.data(matrix, set.count - 1)};
        for_each_tile_block(task.rows, kAmxBlock, 64, [&](int32_t row, int32_t size) {
            alignas(64) float sums[kAmxBlock * 2 * kLanes];
            multiply_tiles<false>(size, set.count, q.data + row * q.stride, q.stride, weights, matrix.padded_in / 64, 64, sums);
            take_off_zero_point(task, row, size, set.count, sums);
            finish(task, set, row, size, sums);
        });
    });
}

// int4: nibbles become bytes in scratch, once for all rows.
constexpr int64_t kByteInputs = 8192;  // of a panel at a time; a multiple of every group
constexpr int64_t kByteBytes = 2 * kByteInputs * kLanes;

inline void unpack_lines(const uint8_t* lines, int64_t inputs, uint8_t* out) {
    for (int64_t k = 0; k < inputs; k += 8, lines += 64, out += 128) {
        I16 quads[2];
        unpack_nibbles(lines, quads);
        istore(out, quads[0]);
        istore(out + 64, quads[1]);
    }
}

// Adds one group's integer sums [rows][count][16], scaled, to tiles of the same shape.
inline void add_group(const LinearTask& task, const PanelSet& set, int64_t group, int32_t row, int32_t rows, const int32_t* sums,
                      float* tiles) {
    const QuantizedRows& q = task.quantized;
    F16 scales[4];
    for (int i = 0; i < set.count; ++i) scales[i] = group_scale(*task.matrix, set.panels[i], group);
    for (int32_t r = row; r < row + rows; ++r) {
        const I16 zero_point = ibroadcast(8 * q.sums[r * q.sums_stride + group]);
        for (int i = 0; i < set.count; ++i, sums += kLanes, tiles += kLanes) {
            store(tiles, fma(to_float(iload(sums) - zero_point), scales[i], load(tiles)));
        }
    }
}

// Calls body(run, first_row, rows, tiles) for stretches of a set's panels in whole bytes and rows whose sums are in `tiles`
// [rows][set.count][16], then finishes the rows.
template <class Body>
[[gnu::always_inline]] inline void for_each_wide_block(const LinearTask& task, const PanelSet& set, Body body) {
    static_assert(kByteBytes + kTileStoreRows * 2 * kLanes * sizeof(float) <= kLinearScratch);
    const Matrix& matrix = *task.matrix;
    uint8_t* bytes = static_cast<uint8_t*>(task.scratch);
    float* tiles = reinterpret_cast<float*>(bytes + kByteBytes);
    for (int32_t first = 0; first < task.rows; first += kTileStoreRows) {
        const int32_t rows = task.rows - first < kTileStoreRows ? task.rows - first : kTileStoreRows;
        memset(tiles, 0, static_cast<size_t>(rows) * static_cast<size_t>(set.count) * kLanes * sizeof(float));
        for (int64_t k = 0; k < matrix.in_features; k += kByteInputs) {
            Run run{};
            run.input = k;
            run.inputs = matrix.in_features - k < kByteInputs ? matrix.in_features - k : kByteInputs;
            for (int i = 0; i < set.count; ++i) {
                uint8_t* to = bytes + i * kByteInputs * kLanes;
                unpack_lines(set.data(matrix, i) + k / 8 * 64, run.inputs, to);
                run.weights[i] = to;
            }
            body(run, first, rows, tiles);
        }
        finish(task, set, first, rows, tiles);
    }
}

// Adds the groups of one run, in ascending order, to tiles [size][set.count][16].
inline void add_int4_tiles(const LinearTask& task, const PanelSet& set, const Run& run, int32_t row, int32_t size, int depth,
                           float* tiles) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    alignas(64) int32_t sums[kAmxBlock * 2 * kLanes];
    for (int64_t k = 0; k < run.inputs; k += matrix.group) {
        const int64_t inputs = run.inputs - k < matrix.group ? run.inputs - k : matrix.group;
        const int64_t group = (run.input + k) / matrix.group;
        const uint8_t* weights[2] = {run.weights[0] + k * kLanes, run.weights[set.count - 1] + k * kLanes};
        const int8_t* x = q.data + row * q.stride + run.input + k;
        multiply_tiles<false>(size, set.count, x, q.stride, weights, (inputs + depth - 1) / depth, depth, sums);
        add_group(task, set, group, row, size, sums, tiles);
    }
}

inline void tiles_int4(const LinearTask& task) {
    const int depth = task.matrix->group < 64 ? task.matrix->group : 64;
    for_each_set(task, 2, [&](const PanelSet& set) {
        for_each_wide_block(task, set, [&](const Run& run, int32_t first_row, int32_t rows, float* tiles) {
            for_each_tile_block(rows, kAmxBlock, depth, [&](int32_t row, int32_t size) {
                add_int4_tiles(task, set, run, first_row + row, size, depth, tiles + row * set.count * kLanes);
            });
        });
    });
}

// `in_features` floats as bf16, then zeros up to `padded`.
inline void narrow_row(const float* x, int64_t in_features, int64_t padded, uint16_t* out) {
    int64_t k = 0;
    for (; k < in_features; k += kLanes) {
#ifdef __AVX512BF16__
        const __m256bh half = _mm512_cvtneps_pbh(load(x + k).v);
        memcpy(out + k, &half, sizeof half);
#else
        store_bf16(out + k, load(x + k));
#endif
    }
    for (; k < padded; k += kLanes) store_bf16(out + k, zero());
}

// Between rows in bf16, in bytes: not a multiple of 4,096, where all rows would share a few lines of the first cache.
inline int64_t bf16_stride(int64_t padded_in) { return padded_in * 2 + 64; }

// Rows of a block: as many as scratch holds in bf16; 0 when it does not hold one tile.
inline int32_t bf16_block(int64_t padded_in) {
    const int64_t rows = kLinearScratch / bf16_stride(padded_in);
    return rows >= kAmxBlock ? kAmxBlock : rows >= kAmxRows ? kAmxRows : 0;
}

inline void tiles_bf16(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    uint16_t* x = static_cast<uint16_t*>(task.scratch);
    const int64_t stride = bf16_stride(matrix.padded_in);
    for_each_tile_block(task.rows, bf16_block(matrix.padded_in), 64, [&](int32_t row, int32_t size) {
        for (int32_t r = 0; r < size; ++r) {
            narrow_row(task.x.data + (row + r) * task.x.stride, matrix.in_features, matrix.padded_in, x + r * stride / 2);
        }
        for_each_set(task, 2, [&](const PanelSet& set) {
            alignas(64) float sums[kAmxBlock * 2 * kLanes];
            const uint8_t* weights[2] = {set.data(matrix, 0), set.data(matrix, set.count - 1)};
            multiply_tiles<true>(size, set.count, x, stride, weights, matrix.padded_in / 32, 64, sums);
            finish(task, set, row, size, sums);
        });
    });
}

inline void linear_tiles(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const bool quantized = task.quantized.data != nullptr;
    const bool bf16 = matrix.dtype == Dtype::bf16 && bf16_block(matrix.padded_in) > 0;
    if (task.rows <= kVectorRows || !(bf16 || quantized)) return linear(task);
    if (bf16)
        tiles_bf16(task);
    else if (matrix.dtype == Dtype::int8)
        tiles_int8(task);
    else
        tiles_int4(task);
    _tile_release();
}

}  // namespace hasten::HASTEN_ISA
