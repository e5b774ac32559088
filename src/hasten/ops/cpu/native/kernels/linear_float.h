// Weights of any type times float activations, accumulated in float. Every output is one chain of fused multiply-adds in
// ascending order of the inputs (int4: one chain a group, then one over the groups), in every form.
#pragma once

#include "epilogue.h"

namespace hasten::HASTEN_ISA {

// Each weight type: a line is kBytes of one panel and holds kInputs inputs of its 16 outputs; expand widens it exactly.
struct WeightsF32 {
    static constexpr int kInputs = 1, kBytes = 64;
    static void expand(const uint8_t* line, F16 (&w)[kInputs]) { w[0] = load(reinterpret_cast<const float*>(line)); }
};
struct WeightsF16 {
    static constexpr int kInputs = 1, kBytes = 32;
    static void expand(const uint8_t* line, F16 (&w)[kInputs]) { w[0] = load_f16(reinterpret_cast<const uint16_t*>(line)); }
};
struct WeightsBf16 {
    static constexpr int kInputs = 2, kBytes = 64;
    static void expand(const uint8_t* line, F16 (&w)[kInputs]) { load_bf16_pairs(line, w[0], w[1]); }
};
struct WeightsInt8 {
    static constexpr int kInputs = 4, kBytes = 64;
    static void expand(const uint8_t* line, F16 (&w)[kInputs]) {
        const I16 quads = iload(line);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) w[j] = to_float(((j == 0 ? quads : shift_right(quads, 8 * j)) & ibroadcast(255)) - ibroadcast(128));
    }
};
struct WeightsInt4 {
    static constexpr int kInputs = 8, kBytes = 64;
    static void expand(const uint8_t* line, F16 (&w)[kInputs]) {
        const I16 bytes = iload(line);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            w[j] = to_float((shift_right(bytes, 8 * j) & ibroadcast(15)) - ibroadcast(8));
            w[4 + j] = to_float((shift_right(bytes, 8 * j + 4) & ibroadcast(15)) - ibroadcast(8));
        }
    }
};

// acc[r][p] continues over `lines` lines of P panels.
template <class W, int R, int P>
[[gnu::always_inline]] inline void dot_float(RowCursor<R>& x, const uint8_t* const* weights, int64_t lines,
                                             int64_t prefetch_offset, F16 (&acc)[R][P]) {
    for (int64_t line = 0; line < lines; ++line) {
        F16 w[P][W::kInputs];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            prefetch(weights[p] + line * W::kBytes + prefetch_offset);
            W::expand(weights[p] + line * W::kBytes, w[p]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < W::kInputs; ++j) {
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const F16 s = broadcast(reinterpret_cast<const float*>(x.at(r))[j]);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = fma(w[p][j], s, acc[r][p]);
            }
        }
        x.advance(W::kInputs * static_cast<int64_t>(sizeof(float)));
    }
}

// The scales of one group of 16 outputs.
inline F16 group_scale(const Matrix& matrix, int32_t panel, int64_t group) {
    return load_bf16(matrix.group_scales + (panel * int64_t{matrix.groups()} + group) * kLanes);
}

// A run of inputs of P panels: where its lines are, and how the run is cut into groups.
struct Run {
    const uint8_t* weights[4];
    const int32_t* panels;
    int64_t input, inputs;  // the run, in inputs of the row; a whole number of groups, except at the end of a row
    int64_t prefetch_offset;
};

// tile[R][P][16] (rows tile_stride apart) goes on from its contents over a run.
template <class W, bool Grouped, int R, int P>
[[gnu::noinline]] void add_run(const LinearTask& task, int32_t row, const Run& run, float* tile, int64_t tile_stride) {
    const Matrix& matrix = *task.matrix;
    RowCursor<R> x(task.x.data + row * task.x.stride + run.input, task.x.stride * static_cast<int64_t>(sizeof(float)));
    F16 total[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) total[r][p] = load(tile + r * tile_stride + p * kLanes);
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = run.weights[p];
    if constexpr (!Grouped) {
        dot_float<W>(x, w, (run.inputs + W::kInputs - 1) / W::kInputs, run.prefetch_offset, total);
    } else {
        for (int64_t k = 0; k < run.inputs; k += matrix.group) {
            const int64_t inputs = run.inputs - k < matrix.group ? run.inputs - k : matrix.group;
            const int64_t lines = (inputs + W::kInputs - 1) / W::kInputs;
            F16 acc[R][P];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = zero();
            }
            dot_float<W>(x, w, lines, run.prefetch_offset, acc);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                w[p] += lines * W::kBytes;
                const F16 scale = group_scale(matrix, run.panels[p], (run.input + k) / matrix.group);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) total[r][p] = fma(acc[r][p], scale, total[r][p]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(tile + r * tile_stride + p * kLanes, total[r][p]);
    }
}

// A run over all panels of a set, P at a time.
template <class W, bool Grouped, int R, int P>
[[gnu::always_inline]] inline void add_run_to_set(const LinearTask& task, int32_t row, const PanelSet& set, const Run& run, float* tile) {
    for (int i = 0; i < set.count;) {
        Run part = run;
        for (int p = 0; i + p < set.count; ++p) part.weights[p] = run.weights[i + p];
        part.panels = set.panels + i;
        if (i + P <= set.count) {
            add_run<W, Grouped, R, P>(task, row, part, tile + i * kLanes, set.count * kLanes);
            i += P;
        } else {
            add_run<W, Grouped, R, 1>(task, row, part, tile + i * kLanes, set.count * kLanes);
            i += 1;
        }
    }
}

// Few rows: weights are widened in registers on their way from memory.
template <class W, bool Grouped, int R>
[[gnu::always_inline]] inline void stream_float(const LinearTask& task, const PanelSet& set, int32_t row) {
    constexpr int P = kVectorRegisters == 32 && W::kInputs <= 4 ? 2 : 1;
    alignas(64) float tile[R * 4 * kLanes] = {};
    Run run{};
    for (int i = 0; i < set.count; ++i) run.weights[i] = set.data(*task.matrix, i);
    run.inputs = task.matrix->in_features;
    run.prefetch_offset = kAheadBytes;
    add_run_to_set<W, Grouped, R, P>(task, row, set, run, tile);
    finish(task, set, row, R, tile);
}

// Many rows: a stretch of the set's panels is widened once to floats in scratch, then meets all rows.
constexpr int64_t kWideInputs = 2048;                                   // of a panel at a time; a multiple of every group
constexpr int64_t kWideBytes = 4 * kWideInputs * kLanes * sizeof(float);
constexpr int32_t kTileStoreRows = 1024;                                // whose sums wait in scratch between stretches
static_assert(kWideBytes + kTileStoreRows * 4 * kLanes * sizeof(float) <= kLinearScratch);

template <class W>
inline void widen(const uint8_t* lines, int64_t inputs, float* out) {
    for (int64_t k = 0; k < inputs; k += W::kInputs, lines += W::kBytes) {
        F16 w[W::kInputs];
        W::expand(lines, w);
        for (int j = 0; j < W::kInputs; ++j) store(out + (k + j) * kLanes, w[j]);
    }
}

template <class W, bool Grouped>
inline void block_float(const LinearTask& task, const PanelSet& set, int32_t first_row, int32_t rows) {
    const Matrix& matrix = *task.matrix;
    float* wide = static_cast<float*>(task.scratch);
    float* tiles = wide + kWideBytes / static_cast<int64_t>(sizeof(float));
    memset(tiles, 0, static_cast<size_t>(rows) * static_cast<size_t>(set.count) * kLanes * sizeof(float));
    for (int64_t k = 0; k < matrix.in_features; k += kWideInputs) {
        Run run{};
        run.input = k;
        run.inputs = matrix.in_features - k < kWideInputs ? matrix.in_features - k : kWideInputs;
        for (int i = 0; i < set.count; ++i) {
            const uint8_t* lines = set.data(matrix, i) + k / W::kInputs * W::kBytes;
            float* to = wide + i * kWideInputs * kLanes;
            if constexpr (W::kBytes == kLanes * sizeof(float) && W::kInputs == 1) {
                run.weights[i] = lines;
            } else {
                widen<W>(lines, run.inputs, to);
                run.weights[i] = reinterpret_cast<const uint8_t*>(to);
            }
        }
        for_each_row_block(rows, kTileRows, [&](int32_t row, int32_t size) {
            with_count<kTileRows>(size, [&](auto n) {
                add_run_to_set<WeightsF32, Grouped, decltype(n)::value, kTilePanels>(task, first_row + row, set, run,
                                                                                    tiles + row * set.count * kLanes);
            });
        });
    }
    finish(task, set, first_row, rows, tiles);
}

template <class W, bool Grouped>
inline void linear_float(const LinearTask& task) {
    const int widest = task.gated || kTilePanels > 1 ? 2 : 1;
    for_each_set(task, widest, [&](const PanelSet& set) {
        if (task.rows <= kFewRows) {
            constexpr int kRows = kVectorRegisters == 32 ? 8 : 4;
            for_each_row_block(task.rows, kRows, [&](int32_t row, int32_t size) {
                with_count<kRows>(size, [&](auto n) { stream_float<W, Grouped, decltype(n)::value>(task, set, row); });
            });
        } else {
            for (int32_t row = 0; row < task.rows; row += kTileStoreRows) {
                block_float<W, Grouped>(task, set, row, task.rows - row < kTileStoreRows ? task.rows - row : kTileStoreRows);
            }
        }
    });
}

}  // namespace hasten::HASTEN_ISA
