// Products of FP8 numbers (e4m3) with float activations, accumulated in float.
//
// A number has its sign, four bits of exponent with bias 7 and three of fraction. At their place in a float, whose exponent has the
// bias 127, they are 2^-120 times the number, exactly and for subnormal numbers too. Activations are multiplied by 2^60 first, so
// that products are far from the smallest floats, and scales are stored times 2^60.
//
// An output is a chain of fused multiply-adds over the groups, in ascending order: + scale * (sum of the group), where the sum is
// such a chain over the inputs. The streaming form for few rows and the blocked form for many rows give the same bits.
#pragma once

#include "grouped_block.h"
#include "linear_float.h"

namespace hasten::HASTEN_ISA {

// Rows whose sums of a group fit the registers beside the weights of a line.
constexpr int kFp8Rows = kVectorRegisters == 32 ? 12 : 4;
constexpr int kMaxFp8StreamRows = kVectorRegisters == 32 ? 64 : 8;  // more rows share their conversion to float
constexpr int fp8_panels(int rows) { return kVectorRegisters == 8 ? (rows == 1 ? 2 : 1) : rows <= 2 ? 4 : 2; }

// Scratch: activations times 2^60, then a block of weights and the scales of its groups, then sums.
constexpr int64_t kFp8RowFloats = (2 << 20) / int64_t{sizeof(float)};
constexpr int32_t kMaxFp8Rows = 512;
constexpr int64_t kFp8BlockFloats = kBlockFloats + 4 * kBlockInputs / 16 * kLanes;
static_assert(kFp8RowFloats >= kMaxInt8Inputs);
static_assert((kFp8RowFloats + kFp8BlockFloats + int64_t{kMaxFp8Rows} * 2 * kLanes) * int64_t{sizeof(float)} <= kLinearScratch);

// The four inputs of a line, times 2^-120.
[[gnu::always_inline]] inline void load_fp8(const uint8_t* line, F32x16 (&w)[4]) {
    const I32x16 quads = load_i32(line), mask = broadcast_i32(static_cast<int32_t>(0x87f00000u));
    w[0] = as_float(shift_right_signed(shift_left(quads, 24), 4) & mask);
    w[1] = as_float(shift_right_signed(shift_left(quads, 16), 4) & mask);
    w[2] = as_float(shift_right_signed(shift_left(quads, 8), 4) & mask);
    w[3] = as_float(shift_right_signed(quads, 4) & mask);
}

// sums += scale * acc, for R rows and P panels.
template <int R, int P>
[[gnu::always_inline]] inline void add_group(const F32x16 (&acc)[R][P], const float* const (&scales)[P], float* sums,
                                             int64_t stride) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
        const F32x16 scale = load(scales[p]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            float* sum = sums + r * stride + p * kLanes;
            store(sum, fma(acc[r][p], scale, load(sum)));
        }
    }
}

// Micro-kernel of the streaming form: adds R rows of activations times P panels to sums.
template <int R, int P>
[[gnu::noinline]] void fp8_stream_microkernel(const Matrix& matrix, const Rows& rows, const uint8_t* const* weights,
                                              Prefetcher prefetcher, float* sums, int64_t stride) {
    const BlockLayout layout(matrix);
    RowCursor<R> x(rows.data, rows.stride * static_cast<int64_t>(sizeof(float)));
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    int64_t line = 0;
    for (int64_t k = 0; k < matrix.in_features; k += layout.inputs) {
        const float* scales[P];
        for (int p = 0; p < P; ++p) scales[p] = reinterpret_cast<const float*>(w[p] + line * 64);
        prefetcher.issue<true>(w, line++);
        F32x16 acc[R][P];
        clear_accumulators(acc);
        for (const int64_t end = line + layout.lines(k, matrix.in_features); line < end; ++line) {
            F32x16 values[P][4];
            prefetcher.issue<true>(w, line);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) load_fp8(w[p] + line * 64, values[p]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const F32x16 s = broadcast(reinterpret_cast<const float*>(x.at(r))[j]);
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) acc[r][p] = fma(values[p][j], s, acc[r][p]);
                }
            }
            x.advance(4 * static_cast<int64_t>(sizeof(float)));
        }
        add_group(acc, scales, sums, stride);
    }
}

template <int R>
[[gnu::always_inline]] inline void fp8_stream_set(const LinearTask& task, const PanelSet& set, int32_t row, int64_t next_bytes) {
    constexpr int P = fp8_panels(R);
    alignas(64) float sums[R * 4 * kLanes] = {};
    const Matrix& matrix = *task.matrix;
    const Prefetcher prefetcher(matrix.panel_bytes / 64, 64, next_bytes);
    const Rows rows{task.x.data + row * task.x.stride, task.x.stride};
    const int64_t stride = set.count * kLanes;
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(matrix, i);
    prefetch_outputs(task, set, row, R);
    int i = 0;
    for (; i + P <= set.count; i += P)
        fp8_stream_microkernel<R, P>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    for (; i < set.count; ++i) fp8_stream_microkernel<R, 1>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    apply_epilogue(task, set, row, R, sums);
}

inline void fp8_stream(const LinearTask& task) {
    for_each_panel_set(task, task.rows <= 2 ? 4 : 2, [&](const PanelSet& set) {
        for_each_row_block(task.rows, kFp8Rows, [&](int32_t row, int32_t size) {
            const int64_t next_bytes = row + size < task.rows ? 0 : set.next_bytes;
            dispatch_rows<kFp8Rows>(size, [&](auto n) { fp8_stream_set<decltype(n)::value>(task, set, row, next_bytes); });
        });
    });
}

// Inputs of a panel as floats times 2^-120, and the scales of their groups.
struct Fp8FloatBlock {
    const float* weights[4];  // [input][16]
    const float* scales[4];   // [group][16]
    int64_t inputs;
};

// Converts inputs [begin, begin + kBlockInputs) of a panel set.
inline Fp8FloatBlock convert_fp8_block(const Matrix& matrix, const PanelSet& set, int64_t begin, float* weights) {
    const BlockLayout layout(matrix);
    Fp8FloatBlock block{};
    block.inputs = matrix.in_features - begin < kBlockInputs ? matrix.in_features - begin : kBlockInputs;
    float* scales = weights + kBlockFloats;  // at most 32 groups of a panel
    for (int i = 0; i < set.count; ++i) {
        const uint8_t* group = set.data(matrix, i) + begin / layout.inputs * layout.bytes;
        float* out = weights + i * kBlockInputs * kLanes;
        block.weights[i] = out;
        block.scales[i] = scales;
        for (int64_t k = begin; k < begin + block.inputs; k += layout.inputs, group += layout.bytes, scales += kLanes) {
            store(scales, layout.scales(group, 0));
            const uint8_t* line = group + layout.codes_begin;
            for (int64_t n = layout.lines(k, matrix.in_features); n > 0; --n, line += 64, out += 4 * kLanes) {
                F32x16 w[4];
                load_fp8(line, w);
                for (int j = 0; j < 4; ++j) store(out + j * kLanes, w[j]);
            }
        }
    }
    return block;
}

// Micro-kernel of the blocked form: adds R rows times P panels of a block to sums.
template <int R, int P>
[[gnu::noinline]] void fp8_blocked_microkernel(const Rows& rows, const Fp8FloatBlock& block, int panel, int64_t group_inputs,
                                               float* sums, int64_t stride) {
    RowCursor<R> x(rows.data, rows.stride * static_cast<int64_t>(sizeof(float)));
    for (int64_t begin = 0, g = 0; begin < block.inputs; begin += group_inputs, ++g) {
        const int64_t end = begin + group_inputs < block.inputs ? begin + group_inputs : block.inputs;
        F32x16 acc[R][P];
        const float* scales[P];
        clear_accumulators(acc);
        for (int p = 0; p < P; ++p) scales[p] = block.scales[panel + p] + g * kLanes;
        for (int64_t k = begin; k < end; ++k) {
            F32x16 w[P];
            for (int p = 0; p < P; ++p) w[p] = load(block.weights[panel + p] + k * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const F32x16 s = broadcast(*reinterpret_cast<const float*>(x.at(r)));
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = fma(w[p], s, acc[r][p]);
            }
            x.advance(sizeof(float));
        }
        add_group(acc, scales, sums, stride);
    }
}

// Multiplies all rows with one panel set. scratch: for a block of weights, its scales, and sums.
inline void fp8_blocked_set(const LinearTask& task, const PanelSet& set, float* scratch) {
    const Matrix& matrix = *task.matrix;
    float* const sums = scratch + kFp8BlockFloats;
    const int64_t stride = set.count * kLanes;
    memset(sums, 0, static_cast<size_t>(task.rows * stride) * sizeof(float));
    for (int64_t k = 0; k < matrix.in_features; k += kBlockInputs) {
        const Fp8FloatBlock block = convert_fp8_block(matrix, set, k, scratch);
        for_each_row_block(task.rows, kMicroRows, [&](int32_t row, int32_t size) {
            const Rows rows{task.x.data + row * task.x.stride + k, task.x.stride};
            dispatch_rows<kMicroRows>(size, [&](auto n) {
                constexpr int R = decltype(n)::value;
                float* const to = sums + row * stride;
                int i = 0;
                for (; i + kMicroPanels <= set.count; i += kMicroPanels)
                    fp8_blocked_microkernel<R, kMicroPanels>(rows, block, i, matrix.groups.inputs, to + i * kLanes, stride);
                for (; i < set.count; ++i)
                    fp8_blocked_microkernel<R, 1>(rows, block, i, matrix.groups.inputs, to + i * kLanes, stride);
            });
        });
    }
    apply_epilogue(task, set, 0, task.rows, sums);
}

// Multiplies rows whose activations are multiplied by 2^60 already.
inline void fp8_rows(const LinearTask& task, float* scratch) {
    if (task.rows <= kMaxFp8StreamRows) return fp8_stream(task);
    for_each_panel_set(task, 2, [&](const PanelSet& set) { fp8_blocked_set(task, set, scratch); });
}

inline void linear_fp8(const LinearTask& task) {
    float* const scaled = static_cast<float*>(task.scratch);
    const int64_t width = (task.matrix->in_features + 15) / 16 * 16;
    const int64_t fitting = kFp8RowFloats / width;
    const int32_t max_rows = fitting < 1 ? 1 : fitting < kMaxFp8Rows ? static_cast<int32_t>(fitting) : kMaxFp8Rows;
    for_each_row_block(task.rows, max_rows, [&](int32_t first, int32_t count) {
        for (int32_t r = 0; r < count; ++r) {
            const float* from = task.x.data + (first + r) * task.x.stride;
            for (int64_t k = 0; k < width; k += kLanes) store(scaled + r * width + k, load(from + k) * broadcast(kFp8Factor));
        }
        LinearTask rows = task;
        rows.rows = count;
        rows.x = {scaled, width};
        rows.out.data = task.out.data + first * task.out.stride;
        fp8_rows(rows, scaled + kFp8RowFloats);
    });
}

}  // namespace hasten::HASTEN_ISA
