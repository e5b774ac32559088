// Weights of any type times float activations, accumulated in float. Every output is one chain of fused multiply-adds in
// ascending order of the inputs, in every form.
#pragma once

#include <type_traits>

#include "coded.h"
#include "epilogue.h"
#include "nibbles.h"

namespace hasten::HASTEN_ISA {

// Each weight type reads one panel: a line is kBytes of it and holds kInputs inputs of its 16 outputs; expand widens line i
// exactly.
struct WeightsF32 {
    static constexpr int kInputs = 1, kBytes = 64;
    void expand(const uint8_t* lines, int64_t i, F16 (&w)[kInputs]) const {
        w[0] = load(reinterpret_cast<const float*>(lines + i * kBytes));
    }
};
struct WeightsF16 {
    static constexpr int kInputs = 1, kBytes = 32;
    void expand(const uint8_t* lines, int64_t i, F16 (&w)[kInputs]) const {
        w[0] = load_f16(reinterpret_cast<const uint16_t*>(lines + i * kBytes));
    }
};
struct WeightsBf16 {
    static constexpr int kInputs = 2, kBytes = 64;
    void expand(const uint8_t* lines, int64_t i, F16 (&w)[kInputs]) const { widen_pairs(iload(lines + i * kBytes), w[0], w[1]); }
};
struct WeightsCoded {
    static constexpr int kInputs = kUnitInputs, kBytes = kUnitBytes;
    I16 base;
    void expand(const uint8_t* units, int64_t i, F16 (&w)[kInputs]) const {
        I16 pairs[4];
        decode_bf16(units + i * kBytes, base, pairs);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) widen_pairs(pairs[j], w[2 * j], w[2 * j + 1]);
    }
};
struct WeightsInt8 {
    static constexpr int kInputs = 4, kBytes = 64;
    void expand(const uint8_t* lines, int64_t i, F16 (&w)[kInputs]) const {
        const I16 quads = iload(lines + i * kBytes) ^ ibroadcast(static_cast<int32_t>(0x80808080u));  // signed: 128 less
        w[0] = to_float(shift_right_signed(shift_left(quads, 24), 24));
        w[1] = to_float(shift_right_signed(shift_left(quads, 16), 24));
        w[2] = to_float(shift_right_signed(shift_left(quads, 8), 24));
        w[3] = to_float(shift_right_signed(quads, 24));
    }
};
struct WeightsInt4 {
    static constexpr int kInputs = 8, kBytes = kInt4BlockBytes / 8;
    void expand(const uint8_t* blocks, int64_t i, F16 (&w)[kInputs]) const {
        const uint8_t* block = blocks + i / 8 * kInt4BlockBytes;
        const F16 scales = load_s8(scales_of(block, i / 2 % kBlockGroups));
        const I16 bytes = iload(nibble_line(block, i / 2 % kBlockGroups, i % 2));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            w[j] = nibble_to_float(j == 0 ? bytes : shift_right(bytes, 8 * j)) * scales;
            w[4 + j] = nibble_to_float(shift_right(bytes, 8 * j + 4)) * scales;
        }
    }
};

// What reads panel `panel` of a matrix.
template <class W>
inline W reader_of(const Matrix&, int32_t) {
    return {};
}
template <>
inline WeightsCoded reader_of<WeightsCoded>(const Matrix& matrix, int32_t panel) {
    return {iload(matrix.bases + panel * 64)};
}
template <class W, int P>
[[gnu::always_inline]] inline void readers_of(const Matrix& matrix, const int32_t* panels, W (&readers)[P]) {
    for (int p = 0; p < P; ++p) readers[p] = reader_of<W>(matrix, panels[p]);
}

template <int R, int P>
[[gnu::always_inline]] inline void clear(F16 (&acc)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = zero();
    }
}
template <int R, int P>
[[gnu::always_inline]] inline void load_tile(F16 (&acc)[R][P], const float* tile, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = load(tile + r * stride + p * kLanes);
    }
}
template <int R, int P>
[[gnu::always_inline]] inline void store_tile(const F16 (&acc)[R][P], float* tile, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(tile + r * stride + p * kLanes, acc[r][p]);
    }
}

// acc[r][p] goes on over lines [begin, end) of P panels; x is at the first of them. ahead: null when nothing comes from memory.
template <class W, int R, int P>
[[gnu::always_inline]] inline void dot_float(RowCursor<R>& x, const W (&readers)[P], const uint8_t* const (&weights)[P],
                                             int64_t begin, int64_t end, const Ahead* ahead, F16 (&acc)[R][P]) {
    for (int64_t line = begin; line < end; ++line) {
        F16 w[P][W::kInputs];
        if (ahead != nullptr) ahead->fetch<true, W::kBytes>(weights, line);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) readers[p].expand(weights[p], line, w[p]);
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

// Few rows: tile[R][P][16] (rows tile_stride apart), weights widened in registers on their way from memory.
template <class W, int R, int P>
[[gnu::noinline]] void stream_float(const LinearTask& task, int32_t row, const int32_t* panels, const uint8_t* const* weights,
                                    Ahead ahead, float* tile, int64_t tile_stride) {
    RowCursor<R> x(task.x.data + row * task.x.stride, task.x.stride * static_cast<int64_t>(sizeof(float)));
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    const int64_t lines = (task.matrix->in_features + W::kInputs - 1) / W::kInputs;
    W readers[P];
    readers_of(*task.matrix, panels, readers);
    F16 acc[R][P];
    clear(acc);
    dot_float(x, readers, w, 0, lines, &ahead, acc);
    store_tile(acc, tile, tile_stride);
}

template <class W, int R, int P>
[[gnu::always_inline]] inline void stream_panels(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights, int i,
                                                 int32_t row, float* tile) {
    const Ahead ahead((task.matrix->in_features + W::kInputs - 1) / W::kInputs, W::kBytes, set.next_bytes);
    weights += i;
    float* out = tile + i * kLanes;
    stream_float<W, R, P>(task, row, set.panels + i, weights, ahead, out, set.count * kLanes);
}

// The exceptions of a set are read after its panels.
inline void prefetch_exceptions(const Matrix& matrix, const PanelSet& set) {
    if (matrix.dtype != Dtype::bf16_coded) return;
    for (int i = 0; i < set.count; ++i) prefetch(matrix.exceptions + int64_t{set.panels[i]} * matrix.max_exceptions);
}

// Of coded weights: those that have no code, for rows [row, row + rows) of tile [rows][set.count][16].
inline void add_exceptions(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, float* tile) {
    if (task.matrix->dtype != Dtype::bf16_coded) return;
    for (int i = 0; i < set.count; ++i) {
        add_exceptions(*task.matrix, set.panels[i], task.x, row, rows, tile + i * kLanes, set.count * kLanes);
    }
}

// Rows up to which two panels of eight inputs a line fit the registers.
template <class W>
constexpr int kWideUnitRows = std::is_same_v<W, WeightsCoded> ? 8 : 2;

// One set of panels, which lie at `weights`, for rows [row, row + R), as many panels at a time as hide the latency of a chain and
// fit the registers.
template <class W, int R>
[[gnu::always_inline]] inline void stream_set(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights,
                                              int32_t row) {
    constexpr int P = kVectorRegisters == 8       ? panels_for(R)
                      : W::kInputs == 8           ? (R <= kWideUnitRows<W> ? 2 : 1)
                      : R <= 4 && W::kInputs <= 2 ? 4
                                                  : 2;
    alignas(64) float tile[R * 4 * kLanes];
    int i = 0;
    for (; i + P <= set.count; i += P) stream_panels<W, R, P>(task, set, weights, i, row, tile);
    for (; i < set.count; ++i) stream_panels<W, R, 1>(task, set, weights, i, row, tile);
    add_exceptions(task, set, row, R, tile);
    finish(task, set, row, R, tile);
}

// Rows that share what is read, in the forms that stream: as many as have room in the registers beside the weights of a line.
template <class W>
constexpr int kStreamRows = kVectorRegisters == 32 ? 12
                            : W::kInputs == 1      ? 6
                            : W::kInputs == 2      ? 5
                                                   : 4;
// Up to here weights that are widened in registers, for each block of rows anew, are faster than those widened once in scratch.
template <class W>
constexpr int kStreamedRows = kVectorRegisters == 32 || W::kInputs <= 2 ? 64 : 8;

// Many rows: a stretch of a few sets' panels is widened to floats in scratch and meets all rows, whose part of the stretch
// stays in the second cache meanwhile.
constexpr int64_t kWideInputs = 512;  // of a stretch; a multiple of every group
constexpr int64_t kWideFloats = 4 * kWideInputs * kLanes;
constexpr int32_t kTileStoreRows = 512;  // whose sums wait in scratch between stretches
constexpr int kGang = 4;                 // sets that share a stretch, of two panels at most
static_assert((kWideFloats + kTileStoreRows * kGang * 2 * kLanes) * sizeof(float) <= kLinearScratch);

// A stretch of inputs of a set's panels in its wide form.
struct Run {
    const uint8_t* weights[4];
    int64_t inputs;  // of the row
};

template <class W>
inline void widen(const W& reader, const uint8_t* lines, int64_t inputs, float* out) {
    for (int64_t k = 0; k < inputs; k += W::kInputs) {
        F16 w[W::kInputs];
        reader.expand(lines, k / W::kInputs, w);
        for (int j = 0; j < W::kInputs; ++j) store(out + (k + j) * kLanes, w[j]);
    }
}

// tile[R][P][16] goes on from its contents over `inputs` inputs of P panels of floats.
template <int R, int P>
[[gnu::noinline]] void add_wide(const float* rows, int64_t x_stride, const uint8_t* const* weights, int64_t inputs, float* tile,
                                int64_t tile_stride) {
    RowCursor<R> x(rows, x_stride * static_cast<int64_t>(sizeof(float)));
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    F16 acc[R][P];
    load_tile(acc, tile, tile_stride);
    const WeightsF32 readers[P] = {};
    dot_float(x, readers, w, 0, inputs, nullptr, acc);
    store_tile(acc, tile, tile_stride);
}

template <int R>
[[gnu::always_inline]] inline void add_wide_set(const float* rows, int64_t x_stride, const uint8_t* const* weights, int count,
                                                int64_t inputs, float* tile) {
    int i = 0;
    for (; i + kTilePanels <= count; i += kTilePanels) {
        add_wide<R, kTilePanels>(rows, x_stride, weights + i, inputs, tile + i * kLanes, count * kLanes);
    }
    for (; i < count; ++i) add_wide<R, 1>(rows, x_stride, weights + i, inputs, tile + i * kLanes, count * kLanes);
}

// The run of a set from input k on, widened to `wide` unless it is in floats already.
template <class W>
inline Run wide_run(const Matrix& matrix, const PanelSet& set, int64_t k, float* wide) {
    Run run{};
    run.inputs = matrix.in_features - k < kWideInputs ? matrix.in_features - k : kWideInputs;
    for (int i = 0; i < set.count; ++i) {
        const uint8_t* lines = set.data(matrix, i) + k / W::kInputs * W::kBytes;
        float* to = wide + i * kWideInputs * kLanes;
        const bool floats = W::kInputs == 1 && W::kBytes == 64;
        if (!floats) widen(reader_of<W>(matrix, set.panels[i]), lines, run.inputs, to);
        run.weights[i] = floats ? lines : reinterpret_cast<const uint8_t*>(to);
    }
    return run;
}

// Rows [first_row, first_row + rows) of a few sets.
template <class W>
inline void block_float(const LinearTask& task, const PanelSet* sets, int count, int32_t first_row, int32_t rows) {
    float* wide = static_cast<float*>(task.scratch);
    float* tiles = wide + kWideFloats;
    const int64_t set_floats = int64_t{rows} * sets[0].count * kLanes;
    memset(tiles, 0, static_cast<size_t>(set_floats * count) * sizeof(float));
    for (int64_t k = 0; k < task.matrix->in_features; k += kWideInputs) {
        for (int i = 0; i < count; ++i) {
            const PanelSet& set = sets[i];
            const Run run = wide_run<W>(*task.matrix, set, k, wide);
            for_each_row_block(rows, kTileRows, [&](int32_t row, int32_t size) {
                const float* x = task.x.data + (first_row + row) * task.x.stride + k;
                float* tile = tiles + i * set_floats + row * set.count * kLanes;
                with_count<kTileRows>(size, [&](auto n) {
                    add_wide_set<decltype(n)::value>(x, task.x.stride, run.weights, set.count, run.inputs, tile);
                });
            });
        }
    }
    for (int i = 0; i < count; ++i) {
        add_exceptions(task, sets[i], first_row, rows, tiles + i * set_floats);
        finish(task, sets[i], first_row, rows, tiles + i * set_floats);
    }
}

// All rows of the sets gathered so far.
template <class W>
inline void block_float(const LinearTask& task, const PanelSet* sets, int count) {
    for (int32_t row = 0; row < task.rows && count > 0; row += kTileStoreRows) {
        block_float<W>(task, sets, count, row, task.rows - row < kTileStoreRows ? task.rows - row : kTileStoreRows);
    }
}

// One set of panels, which lie at `weights`, for all rows.
template <class W>
inline void stream_rows(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights) {
    prefetch_exceptions(*task.matrix, set);
    for_each_row_block(task.rows, kStreamRows<W>, [&](int32_t row, int32_t size) {
        with_count<kStreamRows<W>>(size, [&](auto n) { stream_set<W, decltype(n)::value>(task, set, weights, row); });
    });
}

template <class W>
inline void stream_rows(const LinearTask& task) {
    for_each_set(task, task.rows <= 4 ? 4 : 2, [&](const PanelSet& set) {
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
        stream_rows<W>(task, set, weights);
    });
}

template <class W>
inline void linear_float(const LinearTask& task) {
    if (task.rows <= kStreamedRows<W>) return stream_rows<W>(task);
    PanelSet sets[kGang];
    int gathered = 0;
    for_each_set(task, kTilePanels, [&](const PanelSet& set) {
        if (gathered == kGang || (gathered > 0 && sets[0].count != set.count)) {
            block_float<W>(task, sets, gathered);
            gathered = 0;
        }
        sets[gathered++] = set;
    });
    block_float<W>(task, sets, gathered);
}

// More than one block of rows: coded weights are decoded once for all, into scratch.
inline void stream_decoded(const LinearTask& task) {
    for_each_set(task, 2, [&](PanelSet set) {
        const uint8_t* weights[4];
        uint8_t* to = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < set.count; ++i, to += decoded_bytes(*task.matrix)) {
            decode_lines(*task.matrix, set.panels[i], set.next_bytes, to);
            weights[i] = to;
        }
        set.next_bytes = 0;  // there is no successor in scratch
        stream_rows<WeightsBf16>(task, set, weights);
    });
}

inline void linear_coded(const LinearTask& task) {
    using Plain = WeightsBf16;
    if (task.rows > kStreamRows<Plain> && task.rows <= kStreamedRows<Plain> && decodes(*task.matrix)) return stream_decoded(task);
    linear_float<WeightsCoded>(task);
}

}  // namespace hasten::HASTEN_ISA
