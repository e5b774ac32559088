// int8 weights times int8 activations: exact integer sums, so every form gives the same bits.
#pragma once

#include "epilogue.h"

namespace hasten::HASTEN_ISA {

inline int32_t load_quad(const void* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return quad;
}

// Sum of all columns of a row of activations.
inline int32_t row_sum(const QuantizedRows& rows, int32_t row, int32_t width) {
    int32_t sum = 0;
    for (int32_t run = 0; run * int64_t{rows.group} < width; ++run) sum += rows.sums[row * rows.sums_stride + run];
    return sum;
}

// tile[R][P][16] = x W^T of R rows and P panels at `weights`, the zero point taken off.
template <int R, int P>
[[gnu::noinline]] void dot_int8(const LinearTask& task, int32_t row, const uint8_t* const* weights, int64_t lines, Ahead ahead,
                                float* tile, int64_t tile_stride) {
    RowCursor<R> x(task.quantized.data + row * task.quantized.stride, task.quantized.stride);
    I16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = izero();
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    int64_t line = 0;
    for (int part = 0; part < 2; ++part) {
        const int64_t end = part == 0 ? ahead.turn : lines;
        const int64_t offset = part == 0 ? ahead.within : ahead.beyond;
        for (; line < end; ++line) {
            I16 u[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                prefetch(w[p] + line * 64 + offset);
                u[p] = iload(w[p] + line * 64);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const I16 s = ibroadcast(load_quad(x.at(r)));
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = dot4(acc[r][p], u[p], s);
            }
            x.advance(4);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const I16 zero_point = ibroadcast(128 * row_sum(task.quantized, row + r, task.matrix->in_features));
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(tile + r * tile_stride + p * kLanes, to_float(acc[r][p] - zero_point));
    }
}

// One set of panels for rows [row, row + R), P panels at a time.
template <int R, int P>
[[gnu::always_inline]] inline void int8_block(const LinearTask& task, const PanelSet& set, int32_t row) {
    alignas(64) float tile[R * 4 * kLanes];
    const int64_t lines = (task.matrix->in_features + 3) / 4;
    const Ahead ahead(lines, 64, set.next_bytes);
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
    for (int i = 0; i < set.count;) {
        float* out = tile + i * kLanes;
        if (i + P <= set.count) {
            dot_int8<R, P>(task, row, weights + i, lines, ahead, out, set.count * kLanes);
            i += P;
        } else {
            dot_int8<R, 1>(task, row, weights + i, lines, ahead, out, set.count * kLanes);
            i += 1;
        }
    }
    finish(task, set, row, R, tile);
}

inline void linear_int8(const LinearTask& task) {
    assert(task.matrix->in_features < 66300);  // 255 * 127 * in_features fits an int32
    constexpr int kRows = kVectorRegisters == 32 ? kTileRows : 4;
    for_each_set(task, task.gated || kTilePanels > 1 ? 2 : 1, [&](const PanelSet& set) {
        for_each_row_block(task.rows, kRows, [&](int32_t row, int32_t size) {
            with_count<kRows>(size, [&](auto rows) { int8_block<decltype(rows)::value, kTilePanels>(task, set, row); });
        });
    });
}

}  // namespace hasten::HASTEN_ISA
