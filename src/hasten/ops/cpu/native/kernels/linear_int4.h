// Products of int4 weights with int8 activations. Integer sums are exact and have the bits of an int8 matrix of the same weights.
//
// Few rows are multiplied with the nibbles n directly: s * (sum of n * x - 8 * sum of x) for each group. For a row and a panel this
// takes four dot products and one scaling, and saves the conversion to s * (n - 8). For more rows the conversion to int8 pays.
#pragma once

#include "linear_int8.h"
#include "int4_block.h"

namespace hasten::HASTEN_ISA {

// Rows whose sums stay in registers beside the nibbles of a group.
constexpr int kMaxInt4MicroRows = kVectorRegisters == 32 ? 8 : 4;
// Rows of a block that is multiplied with the nibbles of one group.
constexpr int kInt4RowBlock = 64;
static_assert(kInt4RowBlock * (kMaxInt8Inputs / kInt4GroupInputs) * int64_t{sizeof(int32_t)} <= kLinearScratch);  // zero points
static_assert(2 * kMaxInt8Inputs * kLanes <= kLinearScratch);  // two panels as int8, also in linear_amx.h
static_assert(kMicroPanels <= 2);

// Zero-point terms of each group of one row, `stride` apart: -8 times the sum of the group's 16 activations.
inline void group_zero_points(const int8_t* row, int64_t blocks, int64_t stride, int32_t* zero_points) {
    const I32x16 ones = broadcast_i32(0x01010101);
    for (int64_t block = 0; block < blocks; ++block, row += kInt4BlockInputs, zero_points += kInt4BlockGroups * stride) {
        alignas(64) int32_t quads[kLanes];
        store_i32(quads, dot4(zero_i32(), ones, load_i32(row)));
        for (int g = 0; g < kInt4BlockGroups; ++g) {
            const int32_t* quad_sums = quads + g * kInt4GroupQuads;
            zero_points[g * stride] = initial_nibble_sum(quad_sums[0] + quad_sums[1] + quad_sums[2] + quad_sums[3]);
        }
    }
}

// Rows of activations and their zero-point terms; strides in bytes.
struct Int4RowView {
    const int8_t* x;
    int64_t x_stride;
    const int32_t* zero_points;
    int64_t zero_points_stride;
};

// Micro-kernel: sums[R][P][16] (rows sums_stride apart) of R rows and P panels. Not inlined, as int8_microkernel.
template <int R, int P>
[[gnu::noinline]] void int4_microkernel(const Int4RowView& rows, const uint8_t* const* weights, int64_t blocks,
                                        Prefetcher prefetcher, int32_t* sums, int64_t sums_stride) {
    RowCursor<R> x(rows.x, rows.x_stride), zero_points(rows.zero_points, rows.zero_points_stride);
    I32x16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = zero_i32();
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t block = 0; block < blocks; ++block) {
        prefetcher.issue<true>(w, block);
        for (int g = 0; g < kInt4BlockGroups; ++g) {
            I32x16 nibbles[P][kInt4GroupQuads], scales[P];
            prefetcher.issue<true, 128>(w, block, group_nibbles_offset(g, 0));
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                load_nibbles(w[p] + block * kInt4BlockBytes, g, nibbles[p]);
                scales[p] = load_group_scales(group_scales(w[p] + block * kInt4BlockBytes, g));
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                I32x16 group_sums[P];
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) group_sums[p] = broadcast_i32(load_quad(zero_points.at(r)));
#pragma GCC unroll 4
                for (int j = 0; j < kInt4GroupQuads; ++j) {
                    const I32x16 s = broadcast_i32(load_quad(x.at(r) + 4 * j));
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) group_sums[p] = dot_nibbles(group_sums[p], nibbles[p][j], s);
                }
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = add_scaled_sums(acc[r][p], group_sums[p], scales[p]);
            }
            x.advance(kInt4GroupInputs);
            zero_points.advance(sizeof(int32_t));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store_i32(sums + r * sums_stride + p * kLanes, acc[r][p]);
    }
}

// Multiplies the R rows of the task.
template <int R>
inline void int4_few_rows(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t blocks = matrix.padded_in / kInt4BlockInputs;
    int32_t* zero_points = static_cast<int32_t*>(task.scratch);
    for (int r = 0; r < R; ++r) {
        group_zero_points(task.quantized.data + r * task.quantized.stride, blocks, 1, zero_points + r * blocks * kInt4BlockGroups);
    }
    const Int4RowView rows{task.quantized.data, task.quantized.stride, zero_points,
                           blocks * kInt4BlockGroups * int64_t{sizeof(int32_t)}};
    for_each_panel_set(task, kMicroPanels, [&](const PanelSet& set) {
        alignas(64) int32_t sums[R * 4 * kLanes];
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = set.data(matrix, i);
        const Prefetcher prefetcher(blocks, kInt4BlockBytes, set.next_bytes);
        const int64_t stride = set.count * kLanes;
        prefetch_scales(task, set);
        prefetch_outputs(task, set, 0, R);
        int i = 0;
        for (; i + kMicroPanels <= set.count; i += kMicroPanels) {
            int4_microkernel<R, kMicroPanels>(rows, weights + i, blocks, prefetcher, sums + i * kLanes, stride);
        }
        for (; i < set.count; ++i) int4_microkernel<R, 1>(rows, weights + i, blocks, prefetcher, sums + i * kLanes, stride);
        apply_epilogue(task, set, 0, R, sums);
    });
}

// Accumulates one panel into sums[count][stride]. The nibbles of a group stay in registers for all rows. zero_points:
// [group][count].
[[gnu::noinline]] inline void int4_panel_rows(const Int8RowView& rows, int32_t count, const int32_t* zero_points,
                                              const uint8_t* block, int64_t blocks, Prefetcher prefetcher, int32_t* sums,
                                              int64_t stride) {
    const uint8_t* const w[] = {block};
    for (int64_t group = 0; group < blocks * kInt4BlockGroups; ++group, zero_points += count) {
        const int64_t at = group / kInt4BlockGroups, g = group % kInt4BlockGroups;
        I32x16 nibbles[kInt4GroupQuads];
        prefetcher.issue<true, 128>(w, at, group_nibbles_offset(g, 0));
        if (g == 0) prefetcher.issue<true>(w, at);
        load_nibbles(block + at * kInt4BlockBytes, g, nibbles);
        const I32x16 scales = load_group_scales(group_scales(block + at * kInt4BlockBytes, g));
        const int8_t* x = rows.data + group * kInt4GroupInputs;
        int32_t* sum = sums;
        for (int32_t r = 0; r < count; ++r, x += rows.stride, sum += stride) {
            I32x16 group_sums = broadcast_i32(zero_points[r]);
#pragma GCC unroll 4
            for (int j = 0; j < kInt4GroupQuads; ++j) {
                group_sums = dot_nibbles(group_sums, nibbles[j], broadcast_i32(load_quad(x + 4 * j)));
                prevent_reassociation(group_sums);
            }
            store_i32(sum, add_scaled_sums(load_i32(sum), group_sums, scales));
        }
    }
}

// Multiplies all rows of the task in blocks of kInt4RowBlock.
inline void int4_row_blocks(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t blocks = matrix.padded_in / kInt4BlockInputs;
    int32_t* zero_points = static_cast<int32_t*>(task.scratch);
    for_each_row_block(task.rows, kInt4RowBlock, [&](int32_t row, int32_t count) {
        const Int8RowView rows{task.quantized.data + row * task.quantized.stride, task.quantized.stride};
        for (int32_t r = 0; r < count; ++r) group_zero_points(rows.data + r * rows.stride, blocks, count, zero_points + r);
        for_each_panel_set(task, 1, [&](const PanelSet& set) {
            alignas(64) int32_t sums[kInt4RowBlock * 2 * kLanes] = {};
            const Prefetcher prefetcher(blocks, kInt4BlockBytes, set.next_bytes);
            prefetch_scales(task, set);
            for (int i = 0; i < set.count; ++i) {
                int4_panel_rows(rows, count, zero_points, set.data(matrix, i), blocks, prefetcher, sums + i * kLanes,
                                set.count * kLanes);
            }
            apply_epilogue(task, set, row, count, sums);
        });
    });
}

// Converts panels to int8 in scratch, once for all rows.
inline void int4_as_int8(const LinearTask& task) {
    for_each_panel_set(task, kMicroPanels, [&](const PanelSet& set) {
        const uint8_t* weights[4];
        uint8_t* int8_panel = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < set.count; ++i, int8_panel += int8_panel_bytes(*task.matrix)) {
            int4_panel_to_int8(*task.matrix, set.panels[i], set.next_bytes, int8_panel);
            weights[i] = int8_panel;
        }
        int8_rows(task, set, weights, Int8RowView{task.quantized.data, task.quantized.stride}, 0, task.rows, 0);
    });
}

inline void linear_int4(const LinearTask& task) {
    if (task.rows <= kMaxInt4MicroRows) {
        return dispatch_rows<kMaxInt4MicroRows>(task.rows, [&](auto n) { int4_few_rows<decltype(n)::value>(task); });
    }
    // Without an instruction that sums byte products in 32 bits, nibble products are cheaper.
    if constexpr (kRowQuadBytes == 4)
        int4_as_int8(task);
    else
        int4_row_blocks(task);
}

}  // namespace hasten::HASTEN_ISA
