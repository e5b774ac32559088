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

// The sums [size][count][16] of rows [row, row + size) by a set of panels.
template <class Sum>
struct SetSums {
    PanelSet set{};
    int32_t row = 0, size = 0;
    const Sum* sums = nullptr;
};

// What is done beside each step of the tiles of a set: memory is asked for the weights of its successor and for the lines that its
// own outputs will be written to, and the sums of its predecessor are finished, a few rows at a time. All at once would leave the
// tiles waiting: lines come from the third cache at best, and there are buffers for a few of them only.
template <class Ask, class Sum>
class BesideTiles {
public:
    BesideTiles(const LinearTask& task, int64_t steps, Ask ask, const SetSums<Sum>& before, const SetSums<Sum>& now)
        : task_(task), ask_(ask), before_(before), now_(now), asked_(each(now, steps)), finished_(each(before, steps)) {
        if (finished_ < kFinishedTogether) finished_ = kFinishedTogether;
        prefetch_scales(task, now.set);
    }

    template <int Panels>
    [[gnu::always_inline]] void at(const uint8_t* const (&weights)[2], int64_t step, int64_t line) const {
        ask_.template at<Panels>(weights, step, line);
        for_some(now_, asked_, step,
                 [&](int32_t first, int32_t rows) { prefetch_outputs(task_, now_.set, now_.row + first, rows); });
        for_some(before_, finished_, step, [&](int32_t first, int32_t rows) {
            finish(task_, before_.set, before_.row + first, rows, before_.sums + first * before_.set.count * kLanes);
        });
    }

private:
    static constexpr int32_t kFinishedTogether = 4;  // rows: each time costs a little

    static int32_t each(const SetSums<Sum>& of, int64_t steps) { return static_cast<int32_t>((of.size + steps - 1) / steps); }

    // body(first, rows) for the rows of step `step`, `each` in every step until there are no more.
    template <class Body>
    [[gnu::always_inline]] static void for_some(const SetSums<Sum>& of, int32_t each, int64_t step, Body body) {
        const int64_t first = step * each, left = of.size - first;
        if (left > 0) body(static_cast<int32_t>(first), static_cast<int32_t>(left < each ? left : each));
    }

    const LinearTask& task_;
    const Ask ask_;
    const SetSums<Sum>&before_, &now_;
    int32_t asked_, finished_;
};

// Where the sums of a gang's sets are made, and the last ones made, which are not finished yet.
template <class Sum>
struct GangSums {
    alignas(64) Sum sums[kMaxGang][kAmxBlock * 2 * kLanes];
    SetSums<Sum> before;

    // Two small buffers in turn, if no sums have to wait for the next stretch.
    Sum* place(int set, bool waits) { return sums[waits ? set : before.sums == sums[0] ? 1 : 0]; }
};

// Rows [row, row + size) of `x` by the panels of a gang. start: what their sums begin with.
template <bool Bf16, class Sum>
inline void multiply_gang(const LinearTask& task, const Gang& gang, const uint8_t* x, int64_t stride, int64_t row_bytes,
                          int32_t row, int32_t size, TileAhead soon, TileStart start, GangSums<Sum>& of) {
    for (int64_t at = 0; at < row_bytes; at += kStretch) {
        const bool last = row_bytes - at <= kStretch;
        const int64_t bytes = last ? row_bytes - at : kStretch;
        for (int i = 0; i < gang.count; ++i) {
            const PanelSet& set = gang.sets[i];
            const uint8_t* weights[2] = {gang.weights[i][0] + at * kLanes, gang.weights[i][1] + at * kLanes};
            Sum* to = of.place(i, row_bytes > kStretch);
            const SetSums<Sum> now = last ? SetSums<Sum>{set, row, size, to} : SetSums<Sum>{};
            multiply_tiles<Bf16>(size, set.count, x + at, stride, weights, bytes / 64, 64,
                                 BesideTiles<TileAhead, Sum>(task, bytes / 64, soon, of.before, now),
                                 at == 0 ? start : TileStart{to, set.count * int64_t{64}, 64}, to);
            of.before = now;
        }
    }
}

// Asks for weights that are read as a stream.
struct StreamAhead {
    Ahead ahead;

    template <int Panels>
    [[gnu::always_inline]] void at(const uint8_t* const (&weights)[2], int64_t step, int64_t /*line*/) const {
        ahead.fetch<true, 64 * kLanes, 2>(weights, step);
    }
};

// A product in tiles of a single block of rows, which waits for its weights in memory and reads them as a stream.
template <bool Bf16>
inline void stream_tiles(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, TileStart start) {
    using Sum = std::conditional_t<Bf16, float, int32_t>;
    alignas(64) Sum sums[2][kAmxBlock * 2 * kLanes];
    SetSums<Sum> before;
    const int64_t steps = row_bytes / 64;
    configure_tiles(task.rows, 64);
    for_each_set(task, 2, [&](const PanelSet& set) {
        const uint8_t* weights[2] = {set.data(*task.matrix, 0), set.data(*task.matrix, set.count - 1)};
        Sum* to = sums[before.sums == sums[0] ? 1 : 0];
        const SetSums<Sum> now{set, 0, task.rows, to};
        const StreamAhead ask{Ahead(steps, 64 * kLanes, set.next_bytes)};
        multiply_tiles<Bf16>(task.rows, set.count, x, stride, weights, steps, 64,
                             BesideTiles<StreamAhead, Sum>(task, steps, ask, before, now), start, to);
        before = now;
    });
    finish(task, before.set, 0, before.size, before.sums);
}

// A product in tiles: rows of `x` (`stride` bytes apart, row_bytes of each, a multiple of 64) by all panels of the task, whose
// weights place(gang) has put where the gang says. asks: weights come from memory meanwhile. start(row, size, out): what the sums
// of a block of rows begin with, or null.
template <bool Bf16, class Place, class Start>
inline void tiles_of_rows(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, bool asks, Place place,
                          Start start) {
    const int32_t blocks = (task.rows + kAmxBlock - 1) / kAmxBlock;
    const int lines = !asks || blocks > kAskedBlocks ? 0 : (16 + blocks - 1) / blocks;
    GangSums<std::conditional_t<Bf16, float, int32_t>> sums;
    for_each_gang(task, 2 * row_bytes * kLanes, [&](Gang& gang) {
        place(gang);
        for_each_tile_block(task.rows, kAmxBlock, 64, [&](int32_t row, int32_t size) {
            alignas(64) int32_t first[kAmxBlock * kLanes];
            const int asked = row / kAmxBlock * lines, left = asked < 16 ? 16 - asked : 0;
            multiply_gang<Bf16>(task, gang, static_cast<const uint8_t*>(x) + row * stride, stride, row_bytes, row, size,
                                {gang.ahead, asked, lines < left ? lines : left}, {start(row, size, first), 64, 0}, sums);
        });
    });
    finish(task, sums.before.set, sums.before.row, sums.before.size, sums.before.sums);
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
