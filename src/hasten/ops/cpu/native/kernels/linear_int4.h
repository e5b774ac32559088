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

// tile[R][P][16] of P panels at `weights`, nibbles taken apart in registers: for each block of rows anew, which is faster than
// bytes in scratch for any number of them.
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

// The scales of the next set: a few lines for each panel, which the hardware does not ask for in time.
inline void prefetch_scales(const Matrix& matrix, const PanelSet& set) {
    const int64_t bytes = matrix.groups() * kLanes * int64_t{sizeof(uint16_t)}, step = set.next_bytes / matrix.panel_bytes;
    for (int i = 0; i < set.count; ++i) {
        const char* scales = reinterpret_cast<const char*>(matrix.group_scales) + (set.panels[i] + step) * bytes;
        for (int64_t byte = 0; byte < bytes; byte += 64) prefetch_far(scales + byte);
    }
}

template <int R>
[[gnu::always_inline]] inline void stream_int4_set(const LinearTask& task, const PanelSet& set, int32_t row) {
    constexpr int P = kVectorRegisters == 8 ? 1 : R <= 4 ? 4 : 2;
    alignas(64) float tile[R * 4 * kLanes];
    const Ahead ahead((task.matrix->in_features + 7) / 8, 64, set.next_bytes);
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
    prefetch_outputs(task, set, row, R);
    int i = 0;
    for (; i + P <= set.count; i += P) {
        stream_int4<R, P>(task, row, set.panels + i, weights + i, ahead, tile + i * kLanes, set.count * kLanes);
    }
    for (; i < set.count; ++i) {
        stream_int4<R, 1>(task, row, set.panels + i, weights + i, ahead, tile + i * kLanes, set.count * kLanes);
    }
    finish(task, set, row, R, tile);
}

inline void linear_int4(const LinearTask& task) {
    assert(task.quantized.group == task.matrix->group);
    for_each_set(task, task.rows <= 4 ? 4 : 2, [&](const PanelSet& set) {
        prefetch_scales(*task.matrix, set);
        for_each_row_block(task.rows, kNibbleRows, [&](int32_t row, int32_t size) {
            with_count<kNibbleRows>(size, [&](auto n) { stream_int4_set<decltype(n)::value>(task, set, row); });
        });
    });
}

}  // namespace hasten::HASTEN_ISA
