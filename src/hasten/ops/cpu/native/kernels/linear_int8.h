// int8 weights times int8 activations: exact integer sums, so every form gives the same bits.
#pragma once

#include "epilogue.h"

namespace hasten::HASTEN_ISA {

constexpr int64_t kPreparedBytes = 256 << 10;  // of activations, beside weights in the second cache

inline int32_t load_quad(const void* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return quad;
}

// What the zero point of the weights adds to the sums of a row, taken off: minus 128 times the sum of all its columns.
inline int32_t zero_point_of(const QuantizedRows& rows, int32_t row) { return -128 * rows.sums[row]; }

// Rows of bytes as dot_bytes reads them, kRowQuadBytes for every four.
struct ByteRows {
    const int8_t* data;
    int64_t stride;
};

// sums[R][P][16] (rows sums_stride apart): R rows times `lines` lines of P panels, from start[R] on. A function of its own, as the
// compiler then keeps all sums in registers.
template <int R, int P>
[[gnu::noinline]] void dot_bytes(const ByteRows& rows, const int32_t* start, const uint8_t* const* weights, int64_t lines,
                                 Ahead ahead, int32_t* sums, int64_t sums_stride) {
    RowCursor<R> x(rows.data, rows.stride);
    I16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = ibroadcast(start[r]);
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t line = 0; line < lines; ++line) {
        WeightQuads u[P];
        ahead.fetch<(R < kTileRows)>(w, line);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) u[p] = load_weight_quads(w[p] + line * 64);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const RowQuad s = load_row_quad(x.at(r));
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = dot4(acc[r][p], u[p], s);
        }
        x.advance(kRowQuadBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) istore(sums + r * sums_stride + p * kLanes, acc[r][p]);
    }
}

// The same for all `count` panels of a set.
template <int R, int P>
[[gnu::always_inline]] inline void dot_bytes_of_set(const ByteRows& rows, const int32_t* start, const uint8_t* const* weights,
                                                    int count, int64_t lines, Ahead ahead, int32_t* sums) {
    const int64_t stride = count * kLanes;
    int i = 0;
    for (; i + P <= count; i += P) dot_bytes<R, P>(rows, start, weights + i, lines, ahead, sums + i * kLanes, stride);
    for (; i < count; ++i) dot_bytes<R, 1>(rows, start, weights + i, lines, ahead, sums + i * kLanes, stride);
}

// One set of panels, which lie at `weights`, for rows [row, row + R) of the task, which lie at `rows`.
template <int R, int P>
[[gnu::always_inline]] inline void block_of_bytes(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights,
                                                  const ByteRows& rows, int32_t row, int64_t next_bytes) {
    alignas(64) int32_t sums[R * 4 * kLanes];
    int32_t start[R];
    for (int r = 0; r < R; ++r) start[r] = zero_point_of(task.quantized, row + r);
    const int64_t lines = (task.matrix->in_features + 3) / 4;
    prefetch_scales(task, set);
    prefetch_outputs(task, set, row, R);
    dot_bytes_of_set<R, P>(rows, start, weights, set.count, lines, Ahead(lines, 64, next_bytes), sums);
    finish(task, set, row, R, sums);
}

// Rows [first, first + count) of the task, which lie at `rows`. next_bytes: from each panel to its successor.
inline void rows_of_bytes(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights, const ByteRows& rows,
                          int32_t first, int32_t count, int64_t next_bytes) {
    assert(task.matrix->in_features < 66300);  // 255 * 127 * in_features fits an int32
    for_each_row_block(count, kTileRows, [&](int32_t row, int32_t size) {
        const int64_t next = row + size < count ? 0 : next_bytes;
        const ByteRows block{rows.data + row * rows.stride, rows.stride};
        with_count<kTileRows>(size, [&](auto n) {
            block_of_bytes<decltype(n)::value, panels_for(decltype(n)::value)>(task, set, weights, block, first + row, next);
        });
    });
}

// Calls body(rows, first, count) for all rows of the task: as they are where that is prepared, or in scratch, as many at a time as
// the second cache keeps.
template <class Body>
[[gnu::always_inline]] inline void for_each_prepared(const LinearTask& task, Body body) {
    const QuantizedRows& from = task.quantized;
    if constexpr (kRowQuadBytes == 4) {
        body(ByteRows{from.data, from.stride}, 0, task.rows);
    } else {
        int8_t* const to = static_cast<int8_t*>(task.scratch);
        const int64_t stride = from.stride * kRowQuadBytes / 4;
        const auto kept = static_cast<int32_t>(kPreparedBytes / stride), most = kept > kTileRows ? kept : kTileRows;
        for_each_row_block(task.rows, most, [&](int32_t first, int32_t count) {
            for (int32_t r = 0; r < count; ++r) prepare_row(from.data + (first + r) * from.stride, from.stride, to + r * stride);
            body(ByteRows{to, stride}, first, count);
        });
    }
}

inline void linear_int8(const LinearTask& task) {
    for_each_prepared(task, [&](const ByteRows& rows, int32_t first, int32_t count) {
        for_each_set(task, panels_for(task.rows), [&](const PanelSet& set) {
            const uint8_t* weights[4];
            for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
            rows_of_bytes(task, set, weights, rows, first, count, set.next_bytes);
        });
    });
}

}  // namespace hasten::HASTEN_ISA
