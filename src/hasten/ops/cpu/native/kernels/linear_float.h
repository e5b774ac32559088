// Products of weights of any type with float activations, accumulated in float. Each output is one chain of fused multiply-adds in
// ascending order of the inputs, in every form.
//
// The streaming form serves few rows: it dequantises weights in registers as they arrive from memory. The blocked form serves many
// rows: it dequantises a block of panels once to scratch and multiplies it with all rows.
#pragma once

#include <type_traits>

#include "bf16_compressed.h"
#include "epilogue.h"
#include "int4_block.h"

namespace hasten::HASTEN_ISA {

// Readers of one panel by weight type. A step is kStepBytes of the panel and holds kStepInputs inputs of its 16 outputs. dequantize
// converts step i exactly.
struct WeightsF32 {
    static constexpr int kStepInputs = 1, kStepBytes = 64;
    void dequantize(const uint8_t* steps, int64_t i, F32x16 (&w)[kStepInputs]) const {
        w[0] = load(reinterpret_cast<const float*>(steps + i * kStepBytes));
    }
};
struct WeightsF16 {
    static constexpr int kStepInputs = 1, kStepBytes = 32;
    void dequantize(const uint8_t* steps, int64_t i, F32x16 (&w)[kStepInputs]) const {
        w[0] = load_f16(reinterpret_cast<const uint16_t*>(steps + i * kStepBytes));
    }
};
struct WeightsBf16 {
    static constexpr int kStepInputs = 2, kStepBytes = 64;
    void dequantize(const uint8_t* steps, int64_t i, F32x16 (&w)[kStepInputs]) const {
        unpack_bf16_pairs(load_i32(steps + i * kStepBytes), w[0], w[1]);
    }
};
struct WeightsBf16Compressed {
    static constexpr int kStepInputs = kBf16BlockInputs, kStepBytes = kBf16BlockBytes;
    I32x16 base;
    void dequantize(const uint8_t* blocks, int64_t i, F32x16 (&w)[kStepInputs]) const {
        I32x16 pairs[4];
        decompress_bf16(blocks + i * kStepBytes, base, pairs);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) unpack_bf16_pairs(pairs[j], w[2 * j], w[2 * j + 1]);
    }
};
struct WeightsInt8 {
    static constexpr int kStepInputs = 4, kStepBytes = 64;
    void dequantize(const uint8_t* steps, int64_t i, F32x16 (&w)[kStepInputs]) const {
        // Subtracts the zero point 128.
        const I32x16 quads = load_i32(steps + i * kStepBytes) ^ broadcast_i32(static_cast<int32_t>(0x80808080u));
        w[0] = to_float(shift_right_signed(shift_left(quads, 24), 24));
        w[1] = to_float(shift_right_signed(shift_left(quads, 16), 24));
        w[2] = to_float(shift_right_signed(shift_left(quads, 8), 24));
        w[3] = to_float(shift_right_signed(quads, 24));
    }
};
struct WeightsInt4 {
    static constexpr int kStepInputs = 8, kStepBytes = kInt4BlockBytes / 8;
    void dequantize(const uint8_t* blocks, int64_t i, F32x16 (&w)[kStepInputs]) const {
        const uint8_t* block = blocks + i / 8 * kInt4BlockBytes;
        const F32x16 scales = load_s8(group_scales(block, i / 2 % kInt4BlockGroups));
        const I32x16 bytes = load_i32(group_nibbles(block, i / 2 % kInt4BlockGroups, i % 2));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            w[j] = nibble_to_float(j == 0 ? bytes : shift_right(bytes, 8 * j)) * scales;
            w[4 + j] = nibble_to_float(shift_right(bytes, 8 * j + 4)) * scales;
        }
    }
};

// The reader of panel `panel` of a matrix.
template <class W>
inline W make_reader(const Matrix&, int32_t) {
    return {};
}
template <>
inline WeightsBf16Compressed make_reader<WeightsBf16Compressed>(const Matrix& matrix, int32_t panel) {
    return {load_i32(matrix.exponent_bases + panel * 64)};
}
template <class W, int P>
[[gnu::always_inline]] inline void make_readers(const Matrix& matrix, const int32_t* panels, W (&readers)[P]) {
    for (int p = 0; p < P; ++p) readers[p] = make_reader<W>(matrix, panels[p]);
}

template <int R, int P>
[[gnu::always_inline]] inline void clear_accumulators(F32x16 (&acc)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = zero();
    }
}
template <int R, int P>
[[gnu::always_inline]] inline void load_accumulators(F32x16 (&acc)[R][P], const float* sums, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = load(sums + r * stride + p * kLanes);
    }
}
template <int R, int P>
[[gnu::always_inline]] inline void store_accumulators(const F32x16 (&acc)[R][P], float* sums, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(sums + r * stride + p * kLanes, acc[r][p]);
    }
}

// Accumulates steps [begin, end) of P panels into acc[r][p]. `x` points at the first of these steps. prefetcher: null if the
// weights are in the cache.
template <class W, int R, int P>
[[gnu::always_inline]] inline void accumulate_float(RowCursor<R>& x, const W (&readers)[P], const uint8_t* const (&weights)[P],
                                                    int64_t begin, int64_t end, const Prefetcher* prefetcher, F32x16 (&acc)[R][P]) {
    for (int64_t step = begin; step < end; ++step) {
        F32x16 w[P][W::kStepInputs];
        if (prefetcher != nullptr) prefetcher->issue<true, W::kStepBytes>(weights, step);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) readers[p].dequantize(weights[p], step, w[p]);
#pragma GCC unroll 8
        for (int j = 0; j < W::kStepInputs; ++j) {
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const F32x16 s = broadcast(reinterpret_cast<const float*>(x.at(r))[j]);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = fma(w[p][j], s, acc[r][p]);
            }
        }
        x.advance(W::kStepInputs * static_cast<int64_t>(sizeof(float)));
    }
}

// Micro-kernel of the streaming form: sums[R][P][16], rows sums_stride apart.
template <class W, int R, int P>
[[gnu::noinline]] void stream_microkernel(const LinearTask& task, int32_t row, const int32_t* panels, const uint8_t* const* weights,
                                          Prefetcher prefetcher, float* sums, int64_t sums_stride) {
    RowCursor<R> x(task.x.data + row * task.x.stride, task.x.stride * static_cast<int64_t>(sizeof(float)));
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    const int64_t steps = (task.matrix->in_features + W::kStepInputs - 1) / W::kStepInputs;
    W readers[P];
    make_readers(*task.matrix, panels, readers);
    F32x16 acc[R][P];
    clear_accumulators(acc);
    accumulate_float(x, readers, w, 0, steps, &prefetcher, acc);
    store_accumulators(acc, sums, sums_stride);
}

template <class W, int R, int P>
[[gnu::always_inline]] inline void stream_panels(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights, int i,
                                                 int32_t row, float* sums) {
    const Prefetcher prefetcher((task.matrix->in_features + W::kStepInputs - 1) / W::kStepInputs, W::kStepBytes, set.next_bytes);
    weights += i;
    float* out = sums + i * kLanes;
    stream_microkernel<W, R, P>(task, row, set.panels + i, weights, prefetcher, out, set.count * kLanes);
}

// Prefetches the outlier lists of a set, which are read after its panels.
inline void prefetch_outliers(const Matrix& matrix, const PanelSet& set) {
    if (matrix.dtype != Dtype::bf16_compressed) return;
    for (int i = 0; i < set.count; ++i) prefetch(matrix.outliers + int64_t{set.panels[i]} * matrix.max_outliers);
}

// Adds the outlier products of bf16_compressed weights for rows [row, row + rows) to sums [rows][set.count][16].
inline void add_outlier_products(const LinearTask& task, const PanelSet& set, int32_t row, int32_t rows, float* sums) {
    if (task.matrix->dtype != Dtype::bf16_compressed) return;
    for (int i = 0; i < set.count; ++i) {
        add_outlier_products(*task.matrix, set.panels[i], task.x, row, rows, sums + i * kLanes, set.count * kLanes);
    }
}

// Maximum rows for which two panels of eight inputs per step fit the registers.
template <class W>
constexpr int kMaxTwoPanelRows = std::is_same_v<W, WeightsBf16Compressed> ? 8 : 2;

// Multiplies one set of panels at `weights` with rows [row, row + R). The number of panels at a time hides the latency of the
// multiply-add chain and fits the registers.
template <class W, int R>
[[gnu::always_inline]] inline void stream_set(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights,
                                              int32_t row) {
    constexpr int P = kVectorRegisters == 8           ? micro_panels(R)
                      : W::kStepInputs == 8           ? (R <= kMaxTwoPanelRows<W> ? 2 : 1)
                      : R <= 4 && W::kStepInputs <= 2 ? 4
                                                      : 2;
    alignas(64) float sums[R * 4 * kLanes];
    int i = 0;
    for (; i + P <= set.count; i += P) stream_panels<W, R, P>(task, set, weights, i, row, sums);
    for (; i < set.count; ++i) stream_panels<W, R, 1>(task, set, weights, i, row, sums);
    add_outlier_products(task, set, row, R, sums);
    apply_epilogue(task, set, row, R, sums);
}

// Rows of a block in the streaming form: as many as fit the registers beside the weights of a step.
template <class W>
constexpr int kStreamBlockRows = kVectorRegisters == 32 ? 12
                                 : W::kStepInputs == 1  ? 6
                                 : W::kStepInputs == 2  ? 5
                                                        : 4;
// Maximum rows of the streaming form. It dequantises the weights again for each row block, which is slower for more rows.
template <class W>
constexpr int kMaxStreamRows = kVectorRegisters == 32 || W::kStepInputs <= 2 ? 64 : 8;

// The blocked form: blocks of kBlockInputs inputs of a few panel sets are dequantised to scratch. The activations of a block stay
// in the second-level cache.
constexpr int64_t kBlockInputs = 512;  // inputs of a block; a multiple of every quantisation group
constexpr int64_t kBlockFloats = 4 * kBlockInputs * kLanes;
constexpr int32_t kBlockRows = 512;  // rows whose sums are kept in scratch between blocks
constexpr int kBlockSets = 4;        // panel sets of a block, of at most two panels
static_assert((kBlockFloats + kBlockRows * kBlockSets * 2 * kLanes) * sizeof(float) <= kLinearScratch);

// A block of inputs of a panel set, as floats.
struct KBlock {
    const uint8_t* weights[4];
    int64_t inputs;  // of this block
};

template <class W>
inline void dequantize_panel(const W& reader, const uint8_t* steps, int64_t inputs, float* out) {
    for (int64_t k = 0; k < inputs; k += W::kStepInputs) {
        F32x16 w[W::kStepInputs];
        reader.dequantize(steps, k / W::kStepInputs, w);
        for (int j = 0; j < W::kStepInputs; ++j) store(out + (k + j) * kLanes, w[j]);
    }
}

// Micro-kernel of the blocked form: accumulates `inputs` inputs of P float panels into sums[R][P][16].
template <int R, int P>
[[gnu::noinline]] void blocked_microkernel(const float* rows, int64_t x_stride, const uint8_t* const* weights, int64_t inputs,
                                           float* sums, int64_t sums_stride) {
    RowCursor<R> x(rows, x_stride * static_cast<int64_t>(sizeof(float)));
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    F32x16 acc[R][P];
    load_accumulators(acc, sums, sums_stride);
    const WeightsF32 readers[P] = {};
    accumulate_float(x, readers, w, 0, inputs, nullptr, acc);
    store_accumulators(acc, sums, sums_stride);
}

template <int R>
[[gnu::always_inline]] inline void blocked_panel_set(const float* rows, int64_t x_stride, const uint8_t* const* weights, int count,
                                                     int64_t inputs, float* sums) {
    int i = 0;
    for (; i + kMicroPanels <= count; i += kMicroPanels) {
        blocked_microkernel<R, kMicroPanels>(rows, x_stride, weights + i, inputs, sums + i * kLanes, count * kLanes);
    }
    for (; i < count; ++i) blocked_microkernel<R, 1>(rows, x_stride, weights + i, inputs, sums + i * kLanes, count * kLanes);
}

// Dequantises the block of inputs from k on into `dequantized`, unless the weights are float32.
template <class W>
inline KBlock dequantize_k_block(const Matrix& matrix, const PanelSet& set, int64_t k, float* dequantized) {
    KBlock k_block{};
    k_block.inputs = matrix.in_features - k < kBlockInputs ? matrix.in_features - k : kBlockInputs;
    for (int i = 0; i < set.count; ++i) {
        const uint8_t* steps = set.data(matrix, i) + k / W::kStepInputs * W::kStepBytes;
        float* to = dequantized + i * kBlockInputs * kLanes;
        const bool is_float = W::kStepInputs == 1 && W::kStepBytes == 64;
        if (!is_float) dequantize_panel(make_reader<W>(matrix, set.panels[i]), steps, k_block.inputs, to);
        k_block.weights[i] = is_float ? steps : reinterpret_cast<const uint8_t*>(to);
    }
    return k_block;
}

// Multiplies rows [first_row, first_row + rows) with a few panel sets.
template <class W>
inline void linear_blocked(const LinearTask& task, const PanelSet* sets, int count, int32_t first_row, int32_t rows) {
    float* dequantized = static_cast<float*>(task.scratch);
    float* all_sums = dequantized + kBlockFloats;
    const int64_t set_size = int64_t{rows} * sets[0].count * kLanes;
    memset(all_sums, 0, static_cast<size_t>(set_size * count) * sizeof(float));
    for (int64_t k = 0; k < task.matrix->in_features; k += kBlockInputs) {
        for (int i = 0; i < count; ++i) {
            const PanelSet& set = sets[i];
            const KBlock k_block = dequantize_k_block<W>(*task.matrix, set, k, dequantized);
            for_each_row_block(rows, kMicroRows, [&](int32_t row, int32_t size) {
                const float* x = task.x.data + (first_row + row) * task.x.stride + k;
                float* sums = all_sums + i * set_size + row * set.count * kLanes;
                dispatch_rows<kMicroRows>(size, [&](auto n) {
                    blocked_panel_set<decltype(n)::value>(x, task.x.stride, k_block.weights, set.count, k_block.inputs, sums);
                });
            });
        }
    }
    for (int i = 0; i < count; ++i) {
        add_outlier_products(task, sets[i], first_row, rows, all_sums + i * set_size);
        apply_epilogue(task, sets[i], first_row, rows, all_sums + i * set_size);
    }
}

// Multiplies all rows with a few panel sets.
template <class W>
inline void linear_blocked(const LinearTask& task, const PanelSet* sets, int count) {
    for (int32_t row = 0; row < task.rows && count > 0; row += kBlockRows) {
        linear_blocked<W>(task, sets, count, row, task.rows - row < kBlockRows ? task.rows - row : kBlockRows);
    }
}

// Multiplies all rows with one panel set at `weights`.
template <class W>
inline void stream_rows(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights) {
    prefetch_outliers(*task.matrix, set);
    for_each_row_block(task.rows, kStreamBlockRows<W>, [&](int32_t row, int32_t size) {
        dispatch_rows<kStreamBlockRows<W>>(size, [&](auto n) { stream_set<W, decltype(n)::value>(task, set, weights, row); });
    });
}

template <class W>
inline void stream_rows(const LinearTask& task) {
    for_each_panel_set(task, task.rows <= 4 ? 4 : 2, [&](const PanelSet& set) {
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
        stream_rows<W>(task, set, weights);
    });
}

template <class W>
inline void linear_float(const LinearTask& task) {
    if (task.rows <= kMaxStreamRows<W>) return stream_rows<W>(task);
    PanelSet sets[kBlockSets];
    int num_sets = 0;
    for_each_panel_set(task, kMicroPanels, [&](const PanelSet& set) {
        if (num_sets == kBlockSets || (num_sets > 0 && sets[0].count != set.count)) {
            linear_blocked<W>(task, sets, num_sets);
            num_sets = 0;
        }
        sets[num_sets++] = set;
    });
    linear_blocked<W>(task, sets, num_sets);
}

// More than one row block: decompresses the weights once into scratch.
inline void stream_decompressed(const LinearTask& task) {
    for_each_panel_set(task, 2, [&](PanelSet set) {
        const uint8_t* weights[4];
        uint8_t* to = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < set.count; ++i, to += bf16_panel_bytes(*task.matrix)) {
            decompress_panel(*task.matrix, set.panels[i], set.next_bytes, to);
            weights[i] = to;
        }
        set.next_bytes = 0;  // scratch holds one set, so there is no next panel to prefetch
        stream_rows<WeightsBf16>(task, set, weights);
    });
}

inline void linear_bf16_compressed(const LinearTask& task) {
    using Plain = WeightsBf16;
    if (task.rows > kStreamBlockRows<Plain> && task.rows <= kMaxStreamRows<Plain> && bf16_panels_fit_scratch(*task.matrix))
        return stream_decompressed(task);
    linear_float<WeightsBf16Compressed>(task);
}

}  // namespace hasten::HASTEN_ISA
