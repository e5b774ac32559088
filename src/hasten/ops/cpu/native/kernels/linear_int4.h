// int4 weights times int8 activations: exact integer sums, the bits of an int8 matrix of the same weights.
//
// Few rows meet the nibbles n as they are read: s * (sum of n x - 8 * sum of x) for each group. For a row and a panel that is four
// products and one more for the scale, where weights s * (n - 8) would have to be made first. More rows meet such weights.
#pragma once

#include "linear_int8.h"
#include "nibbles.h"

namespace hasten::HASTEN_ISA {

constexpr int kNibbleRows = kVectorRegisters == 32 ? 8 : 4;  // whose sums stay in registers beside the nibbles of a group
constexpr int kNibbleBlock = 64;                             // rows that pass by the nibbles of a group

// What the sums of each group of one row begin with, `stride` apart: minus 8 times the sum of its 16 bytes.
inline void start_groups(const int8_t* row, int64_t blocks, int64_t stride, int32_t* starts) {
    const I16 ones = ibroadcast(0x01010101);
    for (int64_t block = 0; block < blocks; ++block, row += kInt4Block, starts += kBlockGroups * stride) {
        alignas(64) int32_t quads[kLanes];
        istore(quads, dot4(izero(), ones, iload(row)));
        for (int g = 0; g < kBlockGroups; ++g) {
            const int32_t* of = quads + g * kGroupQuads;
            starts[g * stride] = nibble_start(of[0] + of[1] + of[2] + of[3]);
        }
    }
}

// Rows of activations and what their groups begin with, each so many bytes apart.
struct NibbleRows {
    const int8_t* x;
    int64_t x_stride;
    const int32_t* starts;
    int64_t starts_stride;
};

// sums[R][P][16] (rows sums_stride apart): R rows times P panels. A function of its own, as dot_bytes is.
template <int R, int P>
[[gnu::noinline]] void dot_int4(const NibbleRows& rows, const uint8_t* const* weights, int64_t blocks, Ahead ahead, int32_t* sums,
                                int64_t sums_stride) {
    RowCursor<R> x(rows.x, rows.x_stride), starts(rows.starts, rows.starts_stride);
    I16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = izero();
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t block = 0; block < blocks; ++block) {
        ahead.fetch<true>(w, block);
        for (int g = 0; g < kBlockGroups; ++g) {
            I16 nibbles[P][kGroupQuads], scales[P];
            ahead.fetch<true, 128>(w, block, nibbles_at(g, 0));
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                load_nibbles(w[p] + block * kInt4BlockBytes, g, nibbles[p]);
                scales[p] = load_nibble_scales(scales_of(w[p] + block * kInt4BlockBytes, g));
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                I16 of_group[P];
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) of_group[p] = ibroadcast(load_quad(starts.at(r)));
#pragma GCC unroll 4
                for (int j = 0; j < kGroupQuads; ++j) {
                    const I16 s = ibroadcast(load_quad(x.at(r) + 4 * j));
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) of_group[p] = dot_nibbles(of_group[p], nibbles[p][j], s);
                }
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) acc[r][p] = add_scaled(acc[r][p], of_group[p], scales[p]);
            }
            x.advance(kInt4Group);
            starts.advance(sizeof(int32_t));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) istore(sums + r * sums_stride + p * kLanes, acc[r][p]);
    }
}

// R rows, which are all of the task.
template <int R>
inline void rows_of_nibbles(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t blocks = matrix.padded_in / kInt4Block;
    int32_t* starts = static_cast<int32_t*>(task.scratch);
    for (int r = 0; r < R; ++r) {
        start_groups(task.quantized.data + r * task.quantized.stride, blocks, 1, starts + r * blocks * kBlockGroups);
    }
    const NibbleRows rows{task.quantized.data, task.quantized.stride, starts, blocks * kBlockGroups * int64_t{sizeof(int32_t)}};
    for_each_set(task, kTilePanels, [&](const PanelSet& set) {
        alignas(64) int32_t sums[R * 4 * kLanes];
        const uint8_t* weights[4];
        for (int i = 0; i < set.count; ++i) weights[i] = set.data(matrix, i);
        const Ahead ahead(blocks, kInt4BlockBytes, set.next_bytes);
        const int64_t stride = set.count * kLanes;
        prefetch_scales(task, set);
        prefetch_outputs(task, set, 0, R);
        int i = 0;
        for (; i + kTilePanels <= set.count; i += kTilePanels) {
            dot_int4<R, kTilePanels>(rows, weights + i, blocks, ahead, sums + i * kLanes, stride);
        }
        for (; i < set.count; ++i) dot_int4<R, 1>(rows, weights + i, blocks, ahead, sums + i * kLanes, stride);
        finish(task, set, 0, R, sums);
    });
}

// sums[count][stride]: rows times one panel, whose nibbles are held a group at a time while all rows pass by. starts:
// [group][count].
[[gnu::noinline]] inline void add_groups(const ByteRows& rows, int32_t count, const int32_t* starts, const uint8_t* block,
                                         int64_t blocks, Ahead ahead, int32_t* sums, int64_t stride) {
    const uint8_t* const w[] = {block};
    for (int64_t group = 0; group < blocks * kBlockGroups; ++group, starts += count) {
        const int64_t at = group / kBlockGroups, g = group % kBlockGroups;
        I16 nibbles[kGroupQuads];
        ahead.fetch<true, 128>(w, at, nibbles_at(g, 0));
        if (g == 0) ahead.fetch<true>(w, at);
        load_nibbles(block + at * kInt4BlockBytes, g, nibbles);
        const I16 scales = load_nibble_scales(scales_of(block + at * kInt4BlockBytes, g));
        const int8_t* x = rows.data + group * kInt4Group;
        int32_t* sum = sums;
        for (int32_t r = 0; r < count; ++r, x += rows.stride, sum += stride) {
            I16 of_group = ibroadcast(starts[r]);
#pragma GCC unroll 4
            for (int j = 0; j < kGroupQuads; ++j) {
                of_group = dot_nibbles(of_group, nibbles[j], ibroadcast(load_quad(x + 4 * j)));
                keep_order(of_group);
            }
            istore(sum, add_scaled(iload(sum), of_group, scales));
        }
    }
}

// All rows of the task, a block of them at a time.
inline void blocks_of_nibbles(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const int64_t blocks = matrix.padded_in / kInt4Block;
    int32_t* starts = static_cast<int32_t*>(task.scratch);
    for_each_row_block(task.rows, kNibbleBlock, [&](int32_t row, int32_t count) {
        const ByteRows rows{task.quantized.data + row * task.quantized.stride, task.quantized.stride};
        for (int32_t r = 0; r < count; ++r) start_groups(rows.data + r * rows.stride, blocks, count, starts + r);
        for_each_set(task, 1, [&](const PanelSet& set) {
            alignas(64) int32_t sums[kNibbleBlock * 2 * kLanes] = {};
            const Ahead ahead(blocks, kInt4BlockBytes, set.next_bytes);
            prefetch_scales(task, set);
            for (int i = 0; i < set.count; ++i) {
                add_groups(rows, count, starts, set.data(matrix, i), blocks, ahead, sums + i * kLanes, set.count * kLanes);
            }
            finish(task, set, row, count, sums);
        });
    });
}

// Panels become those of an int8 matrix in scratch, once for all rows.
inline void rows_of_decoded(const LinearTask& task) {
    for_each_set(task, kTilePanels, [&](const PanelSet& set) {
        const uint8_t* weights[4];
        uint8_t* to = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < set.count; ++i, to += decoded_int4_bytes(*task.matrix)) {
            decode_int4_panel(*task.matrix, set.panels[i], set.next_bytes, to);
            weights[i] = to;
        }
        rows_of_bytes(task, set, weights, ByteRows{task.quantized.data, task.quantized.stride}, 0, task.rows, 0);
    });
}

inline void linear_int4(const LinearTask& task) {
    if (task.rows <= kNibbleRows) {
        return with_count<kNibbleRows>(task.rows, [&](auto n) { rows_of_nibbles<decltype(n)::value>(task); });
    }
    // Without an instruction for products of bytes that adds them up in 32 bits, nibbles are the cheaper ones.
    if constexpr (kRowQuadBytes == 4)
        rows_of_decoded(task);
    else
        blocks_of_nibbles(task);
}

}  // namespace hasten::HASTEN_ISA
