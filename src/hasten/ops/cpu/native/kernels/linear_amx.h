// Products of many rows in AMX tiles; few rows, and the types that tiles do not multiply, take the forms of linear.h.
//
// int8 and int4 with int8 activations give the bits of linear.h: the integer sums are exact. With bf16 weights the tiles round
// the activations to bf16 and sum in another order, so a row of a batch above kVectorRows differs from the same row below it.
//
// The caller has asked the system for the tile registers (arch_prctl ARCH_REQ_XCOMP_PERM); the tiles are configured and
// released inside each call.
#pragma once

#include <type_traits>

#include "linear.h"
#include "tiles.h"

namespace hasten::HASTEN_ISA {

// Panels that stay in the second-level cache while all rows pass by, and the next as many that are on their way to it.
constexpr int64_t kGangBytes = 128 << 10;
constexpr int kMaxGang = 8;          // sets
constexpr int32_t kAskedBlocks = 4;  // of rows: with more of them the hardware asks in time, and software only gets in its way
constexpr int64_t kStretch = 1024;   // bytes of 32 rows that stay in the first-level cache while the panels of a gang pass by

// Rows of int8 weights up to which tiles are not faster; of other weights these are kVectorRows.
constexpr int32_t kInt8Rows = 4;

// Sets of two panels that are worked on together, and where their weights lie as tiles want them.
struct Gang {
    PanelSet sets[kMaxGang] = {};
    const uint8_t* weights[kMaxGang][2];
    int count = 0;
    int64_t ahead = 0;  // bytes from each panel to its successor in the next gang
};

// Calls body(gang) for runs of sets, `set_bytes` each as tiles want them.
template <class Body>
[[gnu::always_inline]] inline void for_each_gang(const LinearTask& task, int64_t set_bytes, Body body) {
    const int64_t fit = kGangBytes / set_bytes;
    const int most = fit < 1 ? 1 : fit > kMaxGang ? kMaxGang : static_cast<int>(fit);
    Gang gang;
    const auto hand_out = [&] {
        if (gang.count == 0) return;
        gang.ahead = gang.count * gang.sets[0].next_bytes;
        body(gang);
        gang.count = 0;
    };
    for_each_set(task, 2, [&](const PanelSet& set) {
        if (gang.count == most || gang.sets[0].count != set.count) hand_out();
        gang.sets[gang.count++] = set;
    });
    hand_out();
}

// Rows [row, row + size) of `x` by the panels of a gang. start: what their sums begin with.
template <bool Bf16>
inline void multiply_gang(const LinearTask& task, const Gang& gang, const uint8_t* x, int64_t stride, int64_t row_bytes,
                          int32_t row, int32_t size, TileAhead soon, TileStart start) {
    using Sum = std::conditional_t<Bf16, float, int32_t>;
    alignas(64) Sum sums[kMaxGang][kAmxBlock * 2 * kLanes];
    for (int64_t at = 0; at < row_bytes; at += kStretch) {
        const bool last = row_bytes - at <= kStretch;
        const int64_t bytes = last ? row_bytes - at : kStretch;
        for (int i = 0; i < gang.count; ++i) {
            const int panels = gang.sets[i].count;
            const uint8_t* weights[2] = {gang.weights[i][0] + at * kLanes, gang.weights[i][1] + at * kLanes};
            Sum* to = at == 0 && last ? sums[0] : sums[i];  // the same small buffer for all, if none has to wait
            multiply_tiles<Bf16>(size, panels, x + at, stride, weights, bytes / 64, 64, soon,
                                 at == 0 ? start : TileStart{to, panels * int64_t{64}, 64}, to);
            if (last) finish(task, gang.sets[i], row, size, to);
        }
    }
}

// What is done while the tiles of one set are multiplied, where there is a single block of rows: its weights, which wait for
// memory, are asked for ahead, and the sums of the set before are finished, a few rows a step, so that memory never waits for that.
template <class Sum>
struct Streaming {
    const LinearTask& task;
    Ahead ahead;
    int32_t rows_a_step;
    const PanelSet& before;  // of no panels: there is none
    const Sum* sums;         // of that, [32][count][16]

    template <int Panels>
    [[gnu::always_inline]] void at(const uint8_t* const (&weights)[2], int64_t step, int64_t /*line*/) const {
        ahead.fetch<true, 64 * kLanes, 2>(weights, step);
        const int64_t row = step * rows_a_step;
        if (before.count == 0 || row >= task.rows) return;
        const int32_t first = static_cast<int32_t>(row), left = task.rows - first;
        finish(task, before, first, left < rows_a_step ? left : rows_a_step, sums + row * before.count * kLanes);
    }
};

// A product in tiles of a single block of rows, which waits for its weights in memory and reads them as a stream.
template <bool Bf16>
inline void stream_tiles(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, TileStart start) {
    using Sum = std::conditional_t<Bf16, float, int32_t>;
    alignas(64) Sum sums[2][kAmxBlock * 2 * kLanes];
    PanelSet before{};
    const int64_t steps = row_bytes / 64;
    const int32_t rows_a_step = static_cast<int32_t>((task.rows + steps - 1) / steps);
    int now = 0;
    configure_tiles(task.rows, 64);
    for_each_set(task, 2, [&](const PanelSet& set) {
        const uint8_t* weights[2] = {set.data(*task.matrix, 0), set.data(*task.matrix, set.count - 1)};
        prefetch_outputs(task, set, 0, 0);
        const Streaming<Sum> meanwhile{task, Ahead(steps, 64 * kLanes, set.next_bytes), rows_a_step, before, sums[1 - now]};
        multiply_tiles<Bf16>(task.rows, set.count, x, stride, weights, steps, 64, meanwhile, start, sums[now]);
        before = set, now = 1 - now;
    });
    if (before.count > 0) finish(task, before, 0, task.rows, sums[1 - now]);
}

// A product in tiles: rows of `x` (`stride` bytes apart, row_bytes of each, a multiple of 64) by all panels of the task, whose
// weights place(gang) has put where the gang says. asks: weights come from memory meanwhile. start(row, size, out): what the sums
// of a block of rows begin with, or null.
template <bool Bf16, class Place, class Start>
inline void tiles_of_rows(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, bool asks, Place place,
                          Start start) {
    const int32_t blocks = (task.rows + kAmxBlock - 1) / kAmxBlock;
    const int lines = !asks || blocks > kAskedBlocks ? 0 : (16 + blocks - 1) / blocks;
    for_each_gang(task, 2 * row_bytes * kLanes, [&](Gang& gang) {
        place(gang);
        for_each_tile_block(task.rows, kAmxBlock, 64, [&](int32_t row, int32_t size) {
            alignas(64) int32_t first[kAmxBlock * kLanes];
            const int asked = row / kAmxBlock * lines, left = asked < 16 ? 16 - asked : 0;
            multiply_gang<Bf16>(task, gang, static_cast<const uint8_t*>(x) + row * stride, stride, row_bytes, row, size,
                                {gang.ahead, asked, lines < left ? lines : left}, {start(row, size, first), 64, 0});
        });
    });
}

// Weights that lie in the matrix as tiles want them.
inline auto in_place(const Matrix& matrix) {
    return [&matrix](Gang& gang) {
        for (int i = 0; i < gang.count; ++i) {
            gang.weights[i][0] = gang.sets[i].data(matrix, 0);
            gang.weights[i][1] = gang.sets[i].data(matrix, gang.sets[i].count - 1);
        }
    };
}

// Weights of the gang's panels, decode(panel, ahead, out)d into scratch, `bytes` each.
template <class Decode>
inline auto decoded(const LinearTask& task, int64_t bytes, Decode decode) {
    return [&task, bytes, decode](Gang& gang) {
        uint8_t* to = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < gang.count; ++i) {
            for (int p = 0; p < gang.sets[i].count; ++p, to += bytes) {
                decode(gang.sets[i].panels[p], gang.ahead, to);
                gang.weights[i][p] = to;
            }
            if (gang.sets[i].count == 1) gang.weights[i][1] = gang.weights[i][0];
        }
    };
}

// int8, and int4 as the int8 it stands for.
inline void tiles_int8(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    const auto zero_points = [&](int32_t row, int32_t size, int32_t* out) {
        for (int32_t r = 0; r < size; ++r) istore(out + r * kLanes, ibroadcast(zero_point_of(q, row + r)));
        return out;
    };
    if (matrix.dtype == Dtype::int4) {
        const auto decode = [&matrix](int32_t panel, int64_t ahead, uint8_t* out) { decode_int4_panel(matrix, panel, ahead, out); };
        return tiles_of_rows<false>(task, q.data, q.stride, matrix.padded_in, false,
                                    decoded(task, decoded_int4_bytes(matrix), decode), zero_points);
    }
    if (task.rows <= kAmxBlock) {
        alignas(64) int32_t first[kAmxBlock * kLanes];
        const TileStart start{zero_points(0, task.rows, first), 64, 0};
        return stream_tiles<false>(task, q.data, q.stride, matrix.padded_in, start);
    }
    tiles_of_rows<false>(task, q.data, q.stride, matrix.padded_in, true, in_place(matrix), zero_points);
}

// `in_features` floats as bf16, then zeros up to `padded`.
inline void narrow_row(const float* x, int64_t in_features, int64_t padded, uint16_t* out) {
    int64_t k = 0;
    for (; k < in_features; k += kLanes) {
#ifdef __AVX512BF16__
        const __m256bh half = _mm512_cvtneps_pbh(load(x + k).v);
        memcpy(out + k, &half, sizeof half);
#else
        store_bf16(out + k, load(x + k));
#endif
    }
    for (; k < padded; k += kLanes) store_bf16(out + k, zero());
}

inline void narrow(const NarrowTask& task) {
    const int64_t padded = (task.width + 31) / 32 * 32;
    for (int64_t t = task.begin; t < task.end; ++t) {
        narrow_row(task.x.data + t * task.x.stride, task.width, padded, task.out.data + t * task.out.stride);
    }
}

inline void tiles_bf16(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const auto from_zero = [](int32_t, int32_t, int32_t*) { return nullptr; };
    const int64_t stride = task.narrow.stride * 2, row_bytes = int64_t{matrix.padded_in} * 2;
    const auto decode = [&matrix](int32_t panel, int64_t ahead, uint8_t* out) {
        decode_lines(matrix, panel, ahead, out);
        place_exceptions(matrix, panel, out);
    };
    if (matrix.dtype == Dtype::bf16_coded)
        tiles_of_rows<true>(task, task.narrow.data, stride, row_bytes, false, decoded(task, decoded_bytes(matrix), decode),
                            from_zero);
    else if (task.rows <= kAmxBlock)
        stream_tiles<true>(task, task.narrow.data, stride, row_bytes, {});
    else
        tiles_of_rows<true>(task, task.narrow.data, stride, row_bytes, true, in_place(matrix), from_zero);
}

inline void linear_tiles(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const bool quantized = task.quantized.data != nullptr;
    const bool coded = matrix.dtype == Dtype::bf16_coded && decodes(matrix);
    const bool bf16 = task.narrow.data != nullptr && (matrix.dtype == Dtype::bf16 || coded);
    if (task.rows <= (matrix.dtype == Dtype::int8 ? kInt8Rows : kVectorRows) || !(bf16 || quantized)) return linear(task);
    bf16 ? tiles_bf16(task) : tiles_int8(task);
    _tile_release();
}

}  // namespace hasten::HASTEN_ISA
