// int8 weights times int8 activations: exact integer sums, so every form gives the same bits.
#pragma once

#include "epilogue.h"

namespace hasten::HASTEN_ISA {

inline int32_t load_quad(const void* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return quad;
}

// What the zero point of the weights adds to the sums of a row, taken off: minus 128 times the sum of all its columns.
inline int32_t zero_point_of(const QuantizedRows& rows, int32_t row) { return -128 * rows.sums[row]; }

// sums[R][P][16] (rows sums_stride apart): R rows of bytes, x_stride apart, times `lines` lines of P panels, from start[R] on. A
// function of its own, as the compiler then keeps all sums in registers.
template <int R, int P>
[[gnu::noinline]] void dot_bytes(const int8_t* rows, int64_t x_stride, const int32_t* start, const uint8_t* const* weights,
                                 int64_t lines, Ahead ahead, int32_t* sums, int64_t sums_stride) {
    RowCursor<R> x(rows, x_stride);
    I16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = ibroadcast(start[r]);
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t line = 0; line < lines; ++line) {
        I16 u[P];
        ahead.fetch<(R <= kStreamRows)>(w, line);
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
[[gnu::always_inline]] inline void dot_bytes_of_set(const int8_t* rows, int64_t x_stride, const int32_t* start,
                                                    const uint8_t* const* weights, int count, int64_t lines, Ahead ahead,
                                                    int32_t* sums) {
    const int64_t stride = count * kLanes;
    int i = 0;
    for (; i + P <= count; i += P) {
        dot_bytes<R, P>(rows, x_stride, start, weights + i, lines, ahead, sums + i * kLanes, stride);
    }
    for (; i < count; ++i) dot_bytes<R, 1>(rows, x_stride, start, weights + i, lines, ahead, sums + i * kLanes, stride);
}

// One set of panels, which lie at `weights`, for rows [row, row + R).
template <int R, int P>
[[gnu::always_inline]] inline void block_of_bytes(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights,
                                                  int32_t row, int64_t next_bytes) {
    alignas(64) int32_t sums[R * 4 * kLanes];
    int32_t start[R];
    for (int r = 0; r < R; ++r) start[r] = zero_point_of(task.quantized, row + r);
    const int64_t lines = (task.matrix->in_features + 3) / 4;
    prefetch_scales(task, set);
    prefetch_outputs(task, set, row, R);
    dot_bytes_of_set<R, P>(task.quantized.data + row * task.quantized.stride, task.quantized.stride, start, weights, set.count,
                           lines, Ahead(lines, 64, next_bytes), sums);
    finish(task, set, row, R, sums);
}

// All rows of the task. next_bytes: from each panel to its successor.
inline void rows_of_bytes(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights, int64_t next_bytes) {
    assert(task.matrix->in_features < 66300);  // 255 * 127 * in_features fits an int32
    for_each_row_block(task.rows, kByteTileRows, [&](int32_t row, int32_t size) {
        const int64_t next = row + size < task.rows ? 0 : next_bytes;
        with_count<kByteTileRows>(size,
                                  [&](auto n) { block_of_bytes<decltype(n)::value, kTilePanels>(task, set, weights, row, next); });
    });
}

inline void linear_int8(const LinearTask& task) {
    for_each_set(task, kTilePanels, [&](const PanelSet& set) {
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
        rows_of_bytes(task, set, weights, set.next_bytes);
    });
}

}  // namespace hasten::HASTEN_ISA
