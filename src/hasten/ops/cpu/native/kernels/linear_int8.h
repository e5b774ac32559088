// Products of int8 weights with int8 activations. Integer sums are exact, so every form gives the same bits.
#pragma once

#include "epilogue.h"

namespace hasten::HASTEN_ISA {

constexpr int64_t kPackedActivationBytes = 256 << 10;  // packed activations that fit the second-level cache beside the weights
static_assert(kMicroRows * (kMaxInt8Inputs + 128) * kRowQuadBytes / 4 <= kLinearScratch);  // a row ends at an odd cache line

inline int32_t load_quad(const void* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return quad;
}

// Zero-point correction of a row: -128 times the sum of its activations.
inline int32_t zero_point_correction(const QuantizedRows& rows, int32_t row) { return -128 * rows.sums[row]; }

// Packed rows of int8 activations, kRowQuadBytes for every four inputs.
struct Int8RowView {
    const int8_t* data;
    int64_t stride;
};

// Micro-kernel: sums[R][P][16] (rows sums_stride apart) of R rows and `steps` steps of P panels, starting at initial[R]. It is not
// inlined, so that the compiler keeps all sums in registers.
template <int R, int P>
[[gnu::noinline]] void int8_microkernel(const Int8RowView& rows, const int32_t* initial, const uint8_t* const* weights,
                                        int64_t steps, Prefetcher prefetcher, int32_t* sums, int64_t sums_stride) {
    RowCursor<R> x(rows.data, rows.stride);
    I32x16 acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = broadcast_i32(initial[r]);
    }
    const uint8_t* w[P];
    for (int p = 0; p < P; ++p) w[p] = weights[p];
    for (int64_t step = 0; step < steps; ++step) {
        WeightQuads u[P];
        prefetcher.issue<(R < kMicroRows)>(w, step);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) u[p] = load_weight_quads(w[p] + step * 64);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const RowQuad s = load_row_quad(x.at(r));
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = dot4(acc[r][p], u[p], s);
        }
        x.advance(kRowQuadBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) store_i32(sums + r * sums_stride + p * kLanes, acc[r][p]);
    }
}

// The micro-kernel for all `count` panels of a set.
template <int R, int P>
[[gnu::always_inline]] inline void int8_panel_set(const Int8RowView& rows, const int32_t* initial, const uint8_t* const* weights,
                                                  int count, int64_t steps, Prefetcher prefetcher, int32_t* sums) {
    const int64_t stride = count * kLanes;
    int i = 0;
    for (; i + P <= count; i += P) int8_microkernel<R, P>(rows, initial, weights + i, steps, prefetcher, sums + i * kLanes, stride);
    for (; i < count; ++i) int8_microkernel<R, 1>(rows, initial, weights + i, steps, prefetcher, sums + i * kLanes, stride);
}

// Multiplies one set of panels at `weights` with rows [row, row + R) of the task, which are at `rows`, and applies the epilogue.
template <int R, int P>
[[gnu::always_inline]] inline void int8_row_block(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights,
                                                  const Int8RowView& rows, int32_t row, int64_t next_bytes) {
    alignas(64) int32_t sums[R * 4 * kLanes];
    int32_t initial[R];
    for (int r = 0; r < R; ++r) initial[r] = zero_point_correction(task.quantized, row + r);
    const int64_t steps = (task.matrix->in_features + 3) / 4;
    prefetch_scales(task, set);
    prefetch_outputs(task, set, row, R);
    int8_panel_set<R, P>(rows, initial, weights, set.count, steps, Prefetcher(steps, 64, next_bytes), sums);
    apply_epilogue(task, set, row, R, sums);
}

// Multiplies one set of panels with rows [first, first + count) of the task, which are at `rows`. next_bytes: from each panel to
// the panel to prefetch.
inline void int8_rows(const LinearTask& task, const PanelSet& set, const uint8_t* const* weights, const Int8RowView& rows,
                      int32_t first, int32_t count, int64_t next_bytes) {
    for_each_row_block(count, kMicroRows, [&](int32_t row, int32_t size) {
        const int64_t next = row + size < count ? 0 : next_bytes;
        const Int8RowView block{rows.data + row * rows.stride, rows.stride};
        dispatch_rows<kMicroRows>(size, [&](auto n) {
            int8_row_block<decltype(n)::value, micro_panels(decltype(n)::value)>(task, set, weights, block, first + row, next);
        });
    });
}

// Calls body(rows, first, count) with packed activations of all rows. Where packing changes nothing the rows are used in place;
// else blocks that fit the second-level cache are packed into scratch.
template <class Body>
[[gnu::always_inline]] inline void for_each_packed_block(const LinearTask& task, Body body) {
    const QuantizedRows& activations = task.quantized;
    if constexpr (kRowQuadBytes == 4) {
        body(Int8RowView{activations.data, activations.stride}, 0, task.rows);
    } else {
        int8_t* const packed = static_cast<int8_t*>(task.scratch);
        const int64_t stride = activations.stride * kRowQuadBytes / 4;
        const auto fitting = static_cast<int32_t>(kPackedActivationBytes / stride),
                   max_rows = fitting > kMicroRows ? fitting : kMicroRows;
        for_each_row_block(task.rows, max_rows, [&](int32_t first, int32_t count) {
            for (int32_t r = 0; r < count; ++r)
                pack_activation_row(activations.data + (first + r) * activations.stride, activations.stride, packed + r * stride);
            body(Int8RowView{packed, stride}, first, count);
        });
    }
}

inline void linear_int8(const LinearTask& task) {
    for_each_packed_block(task, [&](const Int8RowView& rows, int32_t first, int32_t count) {
        for_each_panel_set(task, micro_panels(task.rows), [&](const PanelSet& set) {
            const uint8_t* weights[4];
            for (int i = 0; i < set.count; ++i) weights[i] = set.data(*task.matrix, i);
            int8_rows(task, set, weights, rows, first, count, set.next_bytes);
        });
    });
}

}  // namespace hasten::HASTEN_ISA
