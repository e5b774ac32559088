// Products of integer codes in groups with int8 activations x8.
//
// The sum of code * x8 over a group is an exact integer. An output is a chain of fused multiply-adds over the groups, in ascending
// order: + scale * (sum of code * x8), and with offsets + offset * (sum of x8). So every form gives the same bits.
#pragma once

#include "linear_int8.h"
#include "grouped_block.h"

namespace hasten::HASTEN_ISA {

constexpr int kMaxGroupedRows = kVectorRegisters == 32 ? 8 : 2;  // of a block: their sums stay in registers
constexpr int32_t kGroupSumRows = 64;                            // rows whose group sums are kept in scratch
constexpr int64_t kGroupSumBytes = int64_t{kGroupSumRows} * (kMaxInt8Inputs / 16) * int64_t{sizeof(int32_t)};
static_assert(kGroupSumBytes + kMaxGroupedRows * (kMaxInt8Inputs + 128) * kRowQuadBytes / 4 <= kLinearScratch);

// Sums of the activations of each group of a row, `stride` apart.
inline void activation_group_sums(const int8_t* row, const Matrix& matrix, int64_t stride, int32_t* sums) {
    alignas(64) int32_t quads[kLanes];
    const I32x16 ones = broadcast_i32(0x01010101);
    const int64_t groups = num_groups(matrix);
    for (int64_t g = 0; g < groups; ++g) sums[g * stride] = 0;
    for (int64_t k = 0; k < matrix.in_features; k += 64) {
        store_i32(quads, dot4(zero_i32(), ones, load_i32(row + k)));
        for (int64_t quad = 0; quad < kLanes; quad += 4) {
            const int64_t g = (k + 4 * quad) / matrix.group_inputs;
            if (g < groups) sums[g * stride] += quads[quad] + quads[quad + 1] + quads[quad + 2] + quads[quad + 3];
        }
    }
}

// Packed rows of activations, and their group sums: those of one group side by side.
struct GroupedRowView {
    Int8RowView x;
    const int32_t* sums;
    int64_t sums_stride;  // from group to group
};

// Micro-kernel: out[R][P][16] (rows out_stride apart) of R rows and P panels. Not inlined, as int8_microkernel.
template <class Codes, int R, int P>
[[gnu::noinline]] void grouped_int8_microkernel(const Matrix& matrix, const GroupedRowView& rows, const uint8_t* const* weights,
                                                Prefetcher prefetcher, float* out, int64_t out_stride) {
    const GroupLayout layout(matrix);
    const auto zero_point = static_cast<int32_t>(code_zero(matrix.dtype, matrix.has_offsets));
    RowCursor<R> x(rows.x.data, rows.x.stride);
    F32x16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = zero();
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    const int32_t* group_sums = rows.sums;
    int64_t line = 0;
    for (int64_t k = 0; k < matrix.in_features; k += layout.inputs, group_sums += rows.sums_stride) {
        const uint8_t* group[P];
        for (int p = 0; p < P; ++p) group[p] = w[p] + line * 64;
        prefetcher.issue<true>(w, line++);
        if (matrix.has_offsets) prefetcher.issue<true>(w, line++);
        I32x16 sums[R][P];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) sums[r][p] = broadcast_i32(-zero_point * group_sums[r]);
        }
        for (const int64_t end = line + layout.lines(k, matrix.in_features); line < end; ++line) {
            WeightQuads quads[P][Codes::kQuads];
            prefetcher.issue<true>(w, line);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                I32x16 codes[Codes::kQuads];
                Codes::load(w[p] + line * 64, codes);
                for (int i = 0; i < Codes::kQuads; ++i) quads[p][i] = widen_quads(codes[i]);
            }
#pragma GCC unroll 2
            for (int i = 0; i < Codes::kQuads; ++i) {
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const RowQuad s = load_row_quad(x.at(r) + i * kRowQuadBytes);
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) sums[r][p] = dot4(sums[r][p], quads[p][i], s);
                }
            }
            x.advance(Codes::kQuads * kRowQuadBytes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                acc[r][p] = fma(load(group_scales(group[p])), to_float(sums[r][p]), acc[r][p]);
                if (matrix.has_offsets) {
                    const F32x16 sum = broadcast(static_cast<float>(group_sums[r]));
                    acc[r][p] = fma(load(group_offsets(group[p])), sum, acc[r][p]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, acc[r][p]);
    }
}

// Multiplies one set of panels with rows [row, row + R) of the task, which are at `rows`, and applies the epilogue.
template <class Codes, int R>
[[gnu::always_inline]] inline void grouped_int8_row_block(const LinearTask& task, const PanelSet& set, const GroupedRowView& rows,
                                                          int32_t row, int64_t next_bytes) {
    constexpr int P = kVectorRegisters == 8 ? 1 : R <= 4 ? 2 : 1;
    alignas(64) float sums[R * 4 * kLanes];
    const Matrix& matrix = *task.matrix;
    const Prefetcher prefetcher(matrix.panel_bytes / 64, 64, next_bytes);
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(matrix, i);
    const int64_t stride = set.count * kLanes;
    prefetch_outputs(task, set, row, R);
    int i = 0;
    for (; i + P <= set.count; i += P)
        grouped_int8_microkernel<Codes, R, P>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    for (; i < set.count; ++i)
        grouped_int8_microkernel<Codes, R, 1>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    apply_epilogue(task, set, row, R, sums);
}

// Multiplies rows [first, first + count) of the task, whose packed form and group sums are in `rows`, with all panels.
template <class Codes>
inline void grouped_int8_rows(const LinearTask& task, const GroupedRowView& rows, int32_t first, int32_t count) {
    for_each_panel_set(task, 2, [&](const PanelSet& set) {
        for_each_row_block(count, kMaxGroupedRows, [&](int32_t row, int32_t size) {
            const GroupedRowView block{{rows.x.data + row * rows.x.stride, rows.x.stride}, rows.sums + row, rows.sums_stride};
            const int64_t next_bytes = row + size < count ? 0 : set.next_bytes;
            dispatch_rows<kMaxGroupedRows>(size, [&](auto n) {
                grouped_int8_row_block<Codes, decltype(n)::value>(task, set, block, first + row, next_bytes);
            });
        });
    });
}

template <class Codes>
inline void linear_grouped_int8(const LinearTask& task) {
    const QuantizedRows& activations = task.quantized;
    auto* const group_sums = static_cast<int32_t*>(task.scratch);
    auto* const packed = reinterpret_cast<int8_t*>(static_cast<uint8_t*>(task.scratch) + kGroupSumBytes);
    const int64_t packed_stride = activations.stride * kRowQuadBytes / 4;
    const auto fitting = static_cast<int32_t>(kPackedActivationBytes / packed_stride);
    const int32_t packed_rows = fitting > kMaxGroupedRows ? fitting : kMaxGroupedRows;
    const int32_t max_rows = kRowQuadBytes == 4 || packed_rows > kGroupSumRows ? kGroupSumRows : packed_rows;
    for_each_row_block(task.rows, max_rows, [&](int32_t first, int32_t count) {
        for (int32_t r = 0; r < count; ++r) {
            const int8_t* row = activations.data + (first + r) * activations.stride;
            activation_group_sums(row, *task.matrix, count, group_sums + r);
            if constexpr (kRowQuadBytes != 4) pack_activation_row(row, activations.stride, packed + r * packed_stride);
        }
        const Int8RowView in_place{activations.data + first * activations.stride, activations.stride};
        const Int8RowView x = kRowQuadBytes == 4 ? in_place : Int8RowView{packed, packed_stride};
        grouped_int8_rows<Codes>(task, {x, group_sums, count}, first, count);
    });
}

}  // namespace hasten::HASTEN_ISA
