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

// sums[R][P][16] (rows sums_stride apart): R rows of bytes, x_stride apart, times `lines` lines of P panels. A function of its
// own, as the compiler then keeps all sums in registers.
template <int R, int P>
[[gnu::noinline]] void dot_bytes(const int8_t* rows, int64_t x_stride, const uint8_t* const* weights, int64_t lines, Ahead ahead,
                                 int32_t* sums, int64_t sums_stride) {
    RowCursor<R> x(rows, x_stride);
    I16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = izero();
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t line = 0; line < lines; ++line) {
        I16 u[P];
        ahead.fetch<(R >= 4 && R <= kStreamRows)>(w, line);  // more registers of sums, more time between lines
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) u[p] = iload(w[p] + line * 64);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const I16 s = ibroadcast(load_quad(x.at(r)));
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = dot4(acc[r][p], u[p], s);
        }
        x.advance(4);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) istore(sums + r * sums_stride + p * kLanes, acc[r][p]);
    }
}

// The same for all `count` panels of a set.
template <int R, int P>
[[gnu::always_inline]] inline void dot_bytes_of_set(const int8_t* rows, int64_t x_stride, const uint8_t* const* weights, int count,
                                                    int64_t lines, Ahead ahead, int32_t* sums) {
    int i = 0;
    for (; i + P <= count; i += P) dot_bytes<R, P>(rows, x_stride, weights + i, lines, ahead, sums + i * kLanes, count * kLanes);
    for (; i < count; ++i) dot_bytes<R, 1>(rows, x_stride, weights + i, lines, ahead, sums + i * kLanes, count * kLanes);
}

// Integer sums [rows][count][16] become floats in place, the zero point taken off.
inline void take_off_zero_point(const LinearTask& task, int32_t row, int32_t rows, int count, float* tile) {
    for (int32_t r = 0; r < rows; ++r) {
        const I16 zero_point = ibroadcast(128 * row_sum(task.quantized, row + r, task.matrix->in_features));
        for (int i = 0; i < count; ++i, tile += kLanes) store(tile, to_float(iload(tile) - zero_point));
    }
}

// One set of panels for rows [row, row + R).
template <int R, int P>
[[gnu::always_inline]] inline void int8_block(const LinearTask& task, const PanelSet& set, int32_t row, int64_t next_bytes) {
    alignas(64) float tile[R * 4 * kLanes];
    const int64_t lines = (task.matrix->in_features + 3) / 4;
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
    prefetch_outputs(task, set, row, R);
    dot_bytes_of_set<R, P>(task.quantized.data + row * task.quantized.stride, task.quantized.stride, weights, set.count, lines,
                           Ahead(lines, 64, next_bytes), reinterpret_cast<int32_t*>(tile));
    take_off_zero_point(task, row, R, set.count, tile);
    finish(task, set, row, R, tile);
}

inline void linear_int8(const LinearTask& task) {
    assert(task.matrix->in_features < 66300);  // 255 * 127 * in_features fits an int32
    for_each_set(task, kTilePanels, [&](const PanelSet& set) {
        for_each_row_block(task.rows, kByteTileRows, [&](int32_t row, int32_t size) {
            const int64_t next = row + size < task.rows ? 0 : set.next_bytes;
            with_count<kByteTileRows>(size, [&](auto n) { int8_block<decltype(n)::value, kTilePanels>(task, set, row, next); });
        });
    });
}

}  // namespace hasten::HASTEN_ISA
