// Products of many rows in AMX tiles. Few rows, and types without tile instructions, use the forms of linear.h.
//
// With int8 activations the integer sums are exact and have the bits of linear.h. With bf16 weights the tiles round activations to
// bf16 and sum in another order. So a row in a batch of more than kMaxVectorRows differs from the same row in a smaller batch.
//
// The process must have permission to use the tile registers (isa_dispatch.cpp). Each call configures and releases the tiles.
#pragma once

#include <type_traits>

#include "linear.h"
#include "amx_microkernel.h"

namespace hasten::HASTEN_ISA {

// Panels of a group stay in the second-level cache for all rows, beside the panels of the next group that are being prefetched.
constexpr int64_t kGroupBytes = 128 << 10;
constexpr int kMaxGroupSets = 8;
// With more row blocks the hardware prefetcher is in time, and software prefetch only disturbs it.
constexpr int32_t kMaxPrefetchedBlocks = 4;
constexpr int64_t kDepthBlockBytes = 1024;  // bytes of 32 rows that stay in the first-level cache for all panels of a group

// Maximum rows of int8 weights for which vectors are as fast as tiles. For other weights it is kMaxVectorRows.
constexpr int32_t kMaxInt8VectorRows = 4;

// Sets of two panels that are multiplied together, and the addresses of their weights in tile layout.
struct PanelGroup {
    PanelSet sets[kMaxGroupSets] = {};
    const uint8_t* weights[kMaxGroupSets][2];
    int count = 0;
    int64_t next_bytes = 0;  // from each panel to the same panel of the next group
};

// Calls body(group) for runs of sets of set_bytes bytes each in tile layout.
template <class Body>
[[gnu::always_inline]] inline void for_each_panel_group(const LinearTask& task, int64_t set_bytes, Body body) {
    const int64_t fit = kGroupBytes / set_bytes;
    const int max_sets = fit < 1 ? 1 : fit > kMaxGroupSets ? kMaxGroupSets : static_cast<int>(fit);
    PanelGroup group;
    const auto flush = [&] {
        if (group.count == 0) return;
        group.next_bytes = group.count * group.sets[0].next_bytes;
        body(group);
        group.count = 0;
    };
    for_each_panel_set(task, 2, [&](const PanelSet& set) {
        if (group.count == max_sets || group.sets[0].count != set.count) flush();
        group.sets[group.count++] = set;
    });
    flush();
}

// Sums [size][count][16] of rows [row, row + size) and a panel set.
template <class Sum>
struct SetSums {
    PanelSet set{};
    int32_t row = 0, size = 0;
    const Sum* sums = nullptr;
};

// Software pipeline of a panel set: the work interleaved with its tile instructions. Each step prefetches weights of the next set
// and output lines of this set, and applies the epilogue to a few rows of the previous set. Done at once it would stall the tiles:
// cache misses are limited by the line fill buffers.
template <class Prefetch, class Sum>
class InterleavedWork {
public:
    InterleavedWork(const LinearTask& task, int64_t steps, Prefetch prefetch, const SetSums<Sum>& previous,
                    const SetSums<Sum>& current)
        : task_(task),
          prefetch_(prefetch),
          previous_(previous),
          current_(current),
          prefetch_rows_(rows_per_step(current, steps)),
          epilogue_rows_(rows_per_step(previous, steps)) {
        if (epilogue_rows_ < kMinEpilogueRows) epilogue_rows_ = kMinEpilogueRows;
        prefetch_scales(task, current.set);
    }

    template <int Panels>
    [[gnu::always_inline]] void step(const uint8_t* const (&weights)[2], int64_t step, int64_t offset) const {
        prefetch_.template step<Panels>(weights, step, offset);
        for_step_rows(current_, prefetch_rows_, step,
                      [&](int32_t first, int32_t rows) { prefetch_outputs(task_, current_.set, current_.row + first, rows); });
        for_step_rows(previous_, epilogue_rows_, step, [&](int32_t first, int32_t rows) {
            apply_epilogue(task_, previous_.set, previous_.row + first, rows,
                           previous_.sums + first * previous_.set.count * kLanes);
        });
    }

private:
    static constexpr int32_t kMinEpilogueRows = 4;  // each call has some overhead

    static int32_t rows_per_step(const SetSums<Sum>& of, int64_t steps) {
        return static_cast<int32_t>((of.size + steps - 1) / steps);
    }

    // Calls body(first, rows) for the rows of this step.
    template <class Body>
    [[gnu::always_inline]] static void for_step_rows(const SetSums<Sum>& of, int32_t rows_per_step, int64_t step, Body body) {
        const int64_t first = step * rows_per_step, remaining = of.size - first;
        if (remaining > 0)
            body(static_cast<int32_t>(first), static_cast<int32_t>(remaining < rows_per_step ? remaining : rows_per_step));
    }

    const LinearTask& task_;
    const Prefetch prefetch_;
    const SetSums<Sum>&previous_, &current_;
    int32_t prefetch_rows_, epilogue_rows_;
};

// Buffers for the sums of a group's sets, and the last sums, whose epilogue is pending.
template <class Sum>
struct GroupSums {
    alignas(64) Sum sums[kMaxGroupSets][kAmxBlockRows * 2 * kLanes];
    SetSums<Sum> previous;

    // Two small buffers alternate, unless the sums must wait for the next depth block.
    Sum* buffer_for(int set, bool keep_all) { return sums[keep_all ? set : previous.sums == sums[0] ? 1 : 0]; }
};

// Multiplies rows [row, row + size) of `x` with the panels of a group. start: initial values of the sums.
template <bool Bf16, class Sum>
inline void multiply_group(const LinearTask& task, const PanelGroup& group, const uint8_t* x, int64_t stride, int64_t row_bytes,
                           int32_t row, int32_t size, TilePrefetch prefetch, InitialSums start, GroupSums<Sum>& of) {
    for (int64_t at = 0; at < row_bytes; at += kDepthBlockBytes) {
        const bool last = row_bytes - at <= kDepthBlockBytes;
        const int64_t bytes = last ? row_bytes - at : kDepthBlockBytes;
        for (int i = 0; i < group.count; ++i) {
            const PanelSet& set = group.sets[i];
            const uint8_t* weights[2] = {group.weights[i][0] + at * kLanes, group.weights[i][1] + at * kLanes};
            Sum* to = of.buffer_for(i, row_bytes > kDepthBlockBytes);
            const SetSums<Sum> current = last ? SetSums<Sum>{set, row, size, to} : SetSums<Sum>{};
            tile_microkernel<Bf16>(size, set.count, x + at, stride, weights, bytes / 64, 64,
                                   InterleavedWork<TilePrefetch, Sum>(task, bytes / 64, prefetch, of.previous, current),
                                   at == 0 ? start : InitialSums{to, set.count * int64_t{64}, 64}, to);
            of.previous = current;
        }
    }
}

// Prefetch of weights that are streamed from memory.
struct StreamPrefetch {
    Prefetcher prefetcher;

    template <int Panels>
    [[gnu::always_inline]] void step(const uint8_t* const (&weights)[2], int64_t step, int64_t /*offset*/) const {
        prefetcher.issue<true, 64 * kLanes, 2>(weights, step);
    }
};

// A product in tiles with a single block of rows, which streams its weights from memory.
template <bool Bf16>
inline void stream_with_tiles(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, InitialSums start) {
    using Sum = std::conditional_t<Bf16, float, int32_t>;
    alignas(64) Sum sums[2][kAmxBlockRows * 2 * kLanes];
    SetSums<Sum> previous;
    const int64_t steps = row_bytes / 64;
    configure_gemm_tiles(task.rows, 64);
    for_each_panel_set(task, 2, [&](const PanelSet& set) {
        const uint8_t* weights[2] = {set.data(*task.matrix, 0), set.data(*task.matrix, set.count - 1)};
        Sum* to = sums[previous.sums == sums[0] ? 1 : 0];
        const SetSums<Sum> current{set, 0, task.rows, to};
        const StreamPrefetch prefetch{Prefetcher(steps, 64 * kLanes, set.next_bytes)};
        tile_microkernel<Bf16>(task.rows, set.count, x, stride, weights, steps, 64,
                               InterleavedWork<StreamPrefetch, Sum>(task, steps, prefetch, previous, current), start, to);
        previous = current;
    });
    apply_epilogue(task, previous.set, 0, previous.size, previous.sums);
}

// A product in tiles: rows of `x` with all panels of the task. The rows have row_bytes bytes, a multiple of 64, and are `stride`
// bytes apart. locate(group) sets the addresses of the weights. prefetch_weights: the weights come from memory. start(row, size,
// out) returns the initial sums of a row block, or null.
template <bool Bf16, class Locate, class Start>
inline void multiply_with_tiles(const LinearTask& task, const void* x, int64_t stride, int64_t row_bytes, bool prefetch_weights,
                                Locate locate, Start start) {
    const int32_t blocks = (task.rows + kAmxBlockRows - 1) / kAmxBlockRows;
    const int prefetch_lines = !prefetch_weights || blocks > kMaxPrefetchedBlocks ? 0 : (16 + blocks - 1) / blocks;
    GroupSums<std::conditional_t<Bf16, float, int32_t>> sums;
    for_each_panel_group(task, 2 * row_bytes * kLanes, [&](PanelGroup& group) {
        locate(group);
        for_each_amx_row_block(task.rows, kAmxBlockRows, 64, [&](int32_t row, int32_t size) {
            alignas(64) int32_t first[kAmxBlockRows * kLanes];
            const int prefetched = row / kAmxBlockRows * prefetch_lines, remaining = prefetched < 16 ? 16 - prefetched : 0;
            multiply_group<Bf16>(task, group, static_cast<const uint8_t*>(x) + row * stride, stride, row_bytes, row, size,
                                 {group.next_bytes, prefetched, prefetch_lines < remaining ? prefetch_lines : remaining},
                                 {start(row, size, first), 64, 0}, sums);
        });
    });
    apply_epilogue(task, sums.previous.set, sums.previous.row, sums.previous.size, sums.previous.sums);
}

// Locates weights that the matrix stores in tile layout.
inline auto packed_weights(const Matrix& matrix) {
    return [&matrix](PanelGroup& group) {
        for (int i = 0; i < group.count; ++i) {
            group.weights[i][0] = group.sets[i].data(matrix, 0);
            group.weights[i][1] = group.sets[i].data(matrix, group.sets[i].count - 1);
        }
    };
}

// Converts the weights of a group to tile layout in scratch with dequantize(panel, next_bytes, out), `bytes` per panel.
template <class Dequantize>
inline auto dequantized_weights(const LinearTask& task, int64_t bytes, Dequantize dequantize) {
    return [&task, bytes, dequantize](PanelGroup& group) {
        uint8_t* to = static_cast<uint8_t*>(task.scratch);
        for (int i = 0; i < group.count; ++i) {
            for (int p = 0; p < group.sets[i].count; ++p, to += bytes) {
                dequantize(group.sets[i].panels[p], group.next_bytes, to);
                group.weights[i][p] = to;
            }
            if (group.sets[i].count == 1) group.weights[i][1] = group.weights[i][0];
        }
    };
}

// int8 weights, and int4 weights converted to int8.
inline void linear_int8_amx(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const QuantizedRows& q = task.quantized;
    const auto zero_points = [&](int32_t row, int32_t size, int32_t* out) {
        for (int32_t r = 0; r < size; ++r) store_i32(out + r * kLanes, broadcast_i32(zero_point_correction(q, row + r)));
        return out;
    };
    if (matrix.dtype == Dtype::int4) {
        const auto dequantize = [&matrix](int32_t panel, int64_t next_bytes, uint8_t* out) {
            int4_panel_to_int8(matrix, panel, next_bytes, out);
        };
        return multiply_with_tiles<false>(task, q.data, q.stride, matrix.padded_in, false,
                                          dequantized_weights(task, int8_panel_bytes(matrix), dequantize), zero_points);
    }
    if (task.rows <= kAmxBlockRows) {
        alignas(64) int32_t first[kAmxBlockRows * kLanes];
        const InitialSums start{zero_points(0, task.rows, first), 64, 0};
        return stream_with_tiles<false>(task, q.data, q.stride, matrix.padded_in, start);
    }
    multiply_with_tiles<false>(task, q.data, q.stride, matrix.padded_in, true, packed_weights(matrix), zero_points);
}

// Rounds in_features floats to bf16, with zeros up to `padded`.
inline void row_to_bf16(const float* x, int64_t in_features, int64_t padded, uint16_t* out) {
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

inline void convert_to_bf16(const ConvertToBf16Task& task) {
    const int64_t padded = (task.width + 31) / 32 * 32;
    for (int64_t t = task.begin; t < task.end; ++t) {
        row_to_bf16(task.x.data + t * task.x.stride, task.width, padded, task.out.data + t * task.out.stride);
    }
}

inline void linear_bf16_amx(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const auto from_zero = [](int32_t, int32_t, int32_t*) { return nullptr; };
    const int64_t stride = task.x_bf16.stride * 2, row_bytes = int64_t{matrix.padded_in} * 2;
    const auto dequantize = [&matrix](int32_t panel, int64_t next_bytes, uint8_t* out) {
        decompress_panel(matrix, panel, next_bytes, out);
        scatter_outliers(matrix, panel, out);
    };
    if (matrix.dtype == Dtype::bf16_compressed)
        multiply_with_tiles<true>(task, task.x_bf16.data, stride, row_bytes, false,
                                  dequantized_weights(task, bf16_panel_bytes(matrix), dequantize), from_zero);
    else if (task.rows <= kAmxBlockRows)
        stream_with_tiles<true>(task, task.x_bf16.data, stride, row_bytes, {});
    else
        multiply_with_tiles<true>(task, task.x_bf16.data, stride, row_bytes, true, packed_weights(matrix), from_zero);
}

inline void linear_amx(const LinearTask& task) {
    const Matrix& matrix = *task.matrix;
    const bool quantized = task.quantized.data != nullptr;
    const bool compressed = matrix.dtype == Dtype::bf16_compressed && bf16_panels_fit_scratch(matrix);
    const bool bf16 = task.x_bf16.data != nullptr && (matrix.dtype == Dtype::bf16 || compressed);
    const bool has_tiles = bf16 || (quantized && !is_grouped(matrix.dtype));
    if (!has_tiles || task.rows <= (matrix.dtype == Dtype::int8 ? kMaxInt8VectorRows : kMaxVectorRows)) return linear(task);
    bf16 ? linear_bf16_amx(task) : linear_int8_amx(task);
    _tile_release();
}

}  // namespace hasten::HASTEN_ISA
