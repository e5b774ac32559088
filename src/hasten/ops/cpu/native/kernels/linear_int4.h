// Group-wise int4 weights times int8 activations. A group's sum is an exact integer; the groups are added in float, in
// ascending order, in every form.
#pragma once

#include "linear_float.h"
#include "linear_int8.h"

namespace hasten::HASTEN_ISA {

// A line of nibbles, or two lines of whole bytes.
struct PackedNibbles {
    static constexpr int kBytes = 64;
    static void expand(const uint8_t* line, I16& low, I16& high) {
        const I16 bytes = iload(line);
        low = bytes & ibroadcast(0x0f0f0f0f);
        high = shift_right(bytes, 4) & ibroadcast(0x0f0f0f0f);
    }
};
struct WholeBytes {
    static constexpr int kBytes = 128;
    static void expand(const uint8_t* line, I16& low, I16& high) {
        low = iload(line);
        high = iload(line + 64);
    }
};

// tile[R][P][16] (rows tile_stride apart) goes on from its contents over a run.
template <class W, int R, int P>
[[gnu::noinline]] void add_int4_run(const LinearTask& task, int32_t row, const Run& run, float* tile, int64_t tile_stride) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    RowCursor<R> x(q.data + row * q.stride + run.input, q.stride);
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = run.weights[p];
    for (int64_t k = 0; k < run.inputs; k += matrix.group) {
        const int64_t group = (run.input + k) / matrix.group;
        const int64_t lines = ((run.inputs - k < matrix.group ? run.inputs - k : matrix.group) + 7) / 8;
        I16 acc[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const I16 start = ibroadcast(-8 * q.sums[(row + r) * q.sums_stride + group]);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = start;
        }
        for (int64_t line = 0; line < lines; ++line) {
            I16 low[P], high[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                prefetch(w[p] + line * W::kBytes + run.prefetch_offset);
                W::expand(w[p] + line * W::kBytes, low[p], high[p]);
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const I16 s_low = ibroadcast(load_quad(x.at(r))), s_high = ibroadcast(load_quad(x.at(r) + 4));
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = dot4_small(dot4_small(acc[r][p], low[p], s_low), high[p], s_high);
            }
            x.advance(8);
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            w[p] += lines * W::kBytes;
            const F16 scale = group_scale(matrix, run.panels[p], group);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                float* total = tile + r * tile_stride + p * kLanes;
                store(total, fma(to_float(acc[r][p]), scale, load(total)));
            }
        }
    }
}

template <class W, int R, int P>
[[gnu::always_inline]] inline void add_int4_run_to_set(const LinearTask& task, int32_t row, const PanelSet& set, const Run& run,
                                                       float* tile) {
    for (int i = 0; i < set.count;) {
        Run part = run;
        for (int p = 0; i + p < set.count; ++p) part.weights[p] = run.weights[i + p];
        part.panels = set.panels + i;
        if (i + P <= set.count) {
            add_int4_run<W, R, P>(task, row, part, tile + i * kLanes, set.count * kLanes);
            i += P;
        } else {
            add_int4_run<W, R, 1>(task, row, part, tile + i * kLanes, set.count * kLanes);
            i += 1;
        }
    }
}

template <int R>
[[gnu::always_inline]] inline void stream_int4(const LinearTask& task, const PanelSet& set, int32_t row) {
    constexpr int P = kVectorRegisters == 32 ? 2 : 1;
    alignas(64) float tile[R * 4 * kLanes] = {};
    Run run{};
    for (int i = 0; i < set.count; ++i) run.weights[i] = set.data(*task.matrix, i);
    run.inputs = task.matrix->in_features;
    run.prefetch_offset = kAheadBytes;
    add_int4_run_to_set<PackedNibbles, R, P>(task, row, set, run, tile);
    finish(task, set, row, R, tile);
}

// Many rows: nibbles become bytes once, in scratch.
constexpr int64_t kByteInputs = 8192;

inline void unpack_nibbles(const uint8_t* lines, int64_t inputs, uint8_t* out) {
    for (int64_t k = 0; k < inputs; k += 8, lines += 64, out += 128) {
        I16 low, high;
        PackedNibbles::expand(lines, low, high);
        istore(out, low);
        istore(out + 64, high);
    }
}

inline void block_int4(const LinearTask& task, const PanelSet& set, int32_t first_row, int32_t rows) {
    const Matrix& matrix = *task.matrix;
    constexpr int kRows = kVectorRegisters == 32 ? kTileRows : 4;
    uint8_t* bytes = static_cast<uint8_t*>(task.scratch);
    float* tiles = reinterpret_cast<float*>(bytes + kWideBytes);
    static_assert(4 * kByteInputs * kLanes <= kWideBytes);
    memset(tiles, 0, static_cast<size_t>(rows) * static_cast<size_t>(set.count) * kLanes * sizeof(float));
    for (int64_t k = 0; k < matrix.in_features; k += kByteInputs) {
        Run run{};
        run.input = k;
        run.inputs = matrix.in_features - k < kByteInputs ? matrix.in_features - k : kByteInputs;
        for (int i = 0; i < set.count; ++i) {
            uint8_t* to = bytes + i * kByteInputs * kLanes;
            unpack_nibbles(set.data(matrix, i) + k / 8 * 64, run.inputs, to);
            run.weights[i] = to;
        }
        for_each_row_block(rows, kRows, [&](int32_t row, int32_t size) {
            with_count<kRows>(size, [&](auto n) {
                add_int4_run_to_set<WholeBytes, decltype(n)::value, kTilePanels>(task, first_row + row, set, run,
                                                                                tiles + row * set.count * kLanes);
            });
        });
    }
    finish(task, set, first_row, rows, tiles);
}

inline void linear_int4(const LinearTask& task) {
    assert(task.quantized.group == task.matrix->group);
    for_each_set(task, task.gated || kTilePanels > 1 ? 2 : 1, [&](const PanelSet& set) {
        if (task.rows <= kFewRows) {
            constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
            for_each_row_block(task.rows, kRows, [&](int32_t row, int32_t size) {
                with_count<kRows>(size, [&](auto n) { stream_int4<decltype(n)::value>(task, set, row); });
            });
        } else {
            for (int32_t row = 0; row < task.rows; row += kTileStoreRows) {
                block_int4(task, set, row, task.rows - row < kTileStoreRows ? task.rows - row : kTileStoreRows);
            }
        }
    });
}

}  // namespace hasten::HASTEN_ISA
