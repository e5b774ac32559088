// Group-wise int4 weights times int8 activations. A group's sum is an exact integer; the groups are added in float, in
// ascending order, in every form.
#pragma once

#include "linear_float.h"
#include "linear_int8.h"

namespace hasten::HASTEN_ISA {

// A line of nibbles holds two lines of bytes: the low ones four inputs, the high ones the next four.
[[gnu::always_inline]] inline void unpack_nibbles(const uint8_t* line, I16 (&quads)[2]) {
    const I16 bytes = iload(line);
    quads[0] = bytes & ibroadcast(0x0f0f0f0f);
    quads[1] = shift_right(bytes, 4) & ibroadcast(0x0f0f0f0f);
}

constexpr int kNibbleRows = kVectorRegisters == 32 ? 8 : 4;  // two sums for each, of the group and of all groups

// Few rows: tile[R][P][16] of P panels at `weights`, nibbles taken apart in registers.
template <int R, int P>
[[gnu::noinline]] void stream_int4(const LinearTask& task, int32_t row, const int32_t* panels, const uint8_t* const* weights,
                                   Ahead ahead, float* tile, int64_t tile_stride) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    RowCursor<R> x(q.data + row * q.stride, q.stride);
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    F16 total[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) total[r][p] = zero();
    }
    const int64_t lines = (matrix.in_features + 7) / 8;
    for (int64_t begin = 0, group = 0; begin < lines; ++group) {
        const int64_t end = begin + matrix.group / 8 < lines ? begin + matrix.group / 8 : lines;
        I16 acc[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const I16 start = ibroadcast(-8 * q.sums[(row + r) * q.sums_stride + group]);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = start;
        }
        for (int64_t line = begin; line < end; ++line) {
            I16 u[P][2];
            ahead.fetch<false>(w, line);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) unpack_nibbles(w[p] + line * 64, u[p]);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const I16 s_low = ibroadcast(load_quad(x.at(r))), s_high = ibroadcast(load_quad(x.at(r) + 4));
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = dot4_small(dot4_small(acc[r][p], u[p][0], s_low), u[p][1], s_high);
            }
            x.advance(8);
        }
        begin = end;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const F16 scale = group_scale(matrix, panels[p], group);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) total[r][p] = fma(to_float(acc[r][p]), scale, total[r][p]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(tile + r * tile_stride + p * kLanes, total[r][p]);
    }
}

template <int R>
[[gnu::always_inline]] inline void stream_int4_set(const LinearTask& task, const PanelSet& set, int32_t row) {
    constexpr int P = kVectorRegisters == 8 ? 1 : R <= 4 ? 4 : 2;
    alignas(64) float tile[R * 4 * kLanes];
    const Ahead ahead((task.matrix->in_features + 7) / 8, 64, set.next_bytes);
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
    int i = 0;
    for (; i + P <= set.count; i += P) {
        stream_int4<R, P>(task, row, set.panels + i, weights + i, ahead, tile + i * kLanes, set.count * kLanes);
    }
    for (; i < set.count; ++i) {
        stream_int4<R, 1>(task, row, set.panels + i, weights + i, ahead, tile + i * kLanes, set.count * kLanes);
    }
    finish(task, set, row, R, tile);
}

// Many rows: nibbles become bytes once, in scratch.
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

// One run for R rows: each group's sums as in the int8 form, then added to the tiles.
template <int R>
[[gnu::always_inline]] inline void add_int4_run(const LinearTask& task, const PanelSet& set, const Run& run, int32_t row,
                                                float* tiles) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    alignas(64) int32_t sums[R * 4 * kLanes];
    for (int64_t k = 0; k < run.inputs; k += matrix.group) {
        const int64_t lines = ((run.inputs - k < matrix.group ? run.inputs - k : matrix.group) + 3) / 4;
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = run.weights[i] + k * kLanes;
        const int8_t* x = q.data + row * q.stride + run.input + k;
        dot_bytes_of_set<R, kTilePanels>(x, q.stride, weights, set.count, lines, Ahead(lines, 64, 0), sums);
        add_group(task, set, (run.input + k) / matrix.group, row, R, sums, tiles);
    }
}

inline void block_int4(const LinearTask& task, const PanelSet& set) {
    for_each_wide_block(task, set, [&](const Run& run, int32_t first_row, int32_t rows, float* tiles) {
        for_each_row_block(rows, kByteTileRows, [&](int32_t row, int32_t size) {
            with_count<kByteTileRows>(size, [&](auto n) {
                add_int4_run<decltype(n)::value>(task, set, run, first_row + row, tiles + row * set.count * kLanes);
            });
        });
    });
}

inline void linear_int4(const LinearTask& task) {
    assert(task.quantized.group == task.matrix->group);
    if (task.rows > kFewRows) return for_each_set(task, kTilePanels, [&](const PanelSet& set) { block_int4(task, set); });
    for_each_set(task, task.rows <= 4 ? 4 : 2, [&](const PanelSet& set) {
        for_each_row_block(task.rows, kNibbleRows, [&](int32_t row, int32_t size) {
            with_count<kNibbleRows>(size, [&](auto n) { stream_int4_set<decltype(n)::value>(task, set, row); });
        });
    });
}

}  // namespace hasten::HASTEN_ISA
