// Products of integer codes in groups with activations of 8 or 16 bits.
//
// The sum of code * activation over a group is an exact integer. An output is a chain of fused multiply-adds over the groups, in
// ascending order: + scale * (sum of (code - zero) * activation), and with offsets + offset * (sum of activations), where the
// scales and offsets of a group are multiplied with the scale of its activations first. So every form gives the same bits.
//
// Activations of 16 bits take the place of floats: two byte products cost a quarter of the eight float products of a line.
#pragma once

#include "linear_int8.h"
#include "grouped_block.h"

namespace hasten::HASTEN_ISA {

constexpr int kMaxCodeRows = kVectorRegisters == 32 ? 8 : 2;  // of a block: their sums stay in registers
constexpr int32_t kGroupSumRows = 64;                         // rows whose group sums are kept in scratch
constexpr int64_t kGroupSumBytes = int64_t{kGroupSumRows} * (kMaxInt8Inputs / 16) * int64_t{sizeof(int32_t)};
static_assert(kGroupSumBytes + kMaxCodeRows * (kMaxInt8Inputs + 128) * kRowQuadBytes / 4 <= kLinearScratch);

// Activations of one scale for each row, which the epilogue applies.
struct Int8Inputs {
    static constexpr int kQuadBytes = kRowQuadBytes;
    static constexpr bool kHasBlockScales = false;
    struct Sums {
        I32x16 value;
    };
    static Sums start(int32_t initial) { return {broadcast_i32(initial)}; }
    [[gnu::always_inline]] static void add(Sums& sums, const WeightQuads& u, const char* x) {
        sums.value = dot4(sums.value, u, load_row_quad(x));
    }
    static I32x16 total(const Sums& sums) { return sums.value; }
};

// Activations of one scale for each 128 inputs.
struct Int16Inputs {
    static constexpr int kQuadBytes = 8;
    static constexpr bool kHasBlockScales = true;
    using Sums = Int16Sums;
    static Sums start(int32_t initial) { return int16_sums(initial); }
    [[gnu::always_inline]] static void add(Sums& sums, const WeightQuads& u, const char* x) {
        add_products(sums, u, load_int16_quad(x));
    }
    static I32x16 total(const Sums& sums) { return hasten::HASTEN_ISA::total(sums); }
};

// Rows of activations.
struct CodeRowView {
    const void* data;
    int64_t stride;       // bytes
    const int32_t* sums;  // of the activations of a group: [group][sums_stride]
    int64_t sums_stride;
    const float* scales;  // of a block of 128 inputs: [row][scales_stride], or null
    int64_t scales_stride;

    CodeRowView from(int64_t row) const {
        return {static_cast<const uint8_t*>(data) + row * stride,           stride,       sums + row, sums_stride,
                scales == nullptr ? nullptr : scales + row * scales_stride, scales_stride};
    }
};

// Micro-kernel: out[R][P][16] (rows out_stride apart) of R rows and P panels. Not inlined, as int8_microkernel.
template <class Codes, class Inputs, int R, int P>
[[gnu::noinline]] void codes_microkernel(const Matrix& matrix, const CodeRowView& rows, const uint8_t* const* weights,
                                         Prefetcher prefetcher, float* out, int64_t out_stride) {
    const BlockLayout layout(matrix);
    const bool has_offsets = layout.groups.has_offsets;
    const auto zero_point = static_cast<int32_t>(code_zero(matrix.dtype, has_offsets));
    RowCursor<R> x(rows.data, rows.stride);
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
    for (int64_t block = 0, k = 0; k < matrix.in_features; block += layout.bytes) {
        for (const int64_t end = line + layout.codes_begin / 64; line < end; ++line) prefetcher.issue<true>(w, line);
        const int64_t block_end = k + layout.inputs < matrix.in_features ? k + layout.inputs : matrix.in_features;
        for (int64_t g = 0; k < block_end; ++g, k += layout.groups.inputs, group_sums += rows.sums_stride) {
            typename Inputs::Sums sums[R][P];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) sums[r][p] = Inputs::start(-zero_point * group_sums[r]);
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
#pragma GCC unroll 4
                        for (int p = 0; p < P; ++p) Inputs::add(sums[r][p], quads[p][i], x.at(r) + i * Inputs::kQuadBytes);
                    }
                }
                x.advance(Codes::kQuads * Inputs::kQuadBytes);
            }
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const F32x16 scale = layout.scales(w[p] + block, g);
                const F32x16 offset = has_offsets ? layout.offsets(w[p] + block, g) : zero();
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    F32x16 row_scale = scale, row_offset = offset;
                    if constexpr (Inputs::kHasBlockScales) {
                        const F32x16 factor = broadcast(rows.scales[r * rows.scales_stride + k / kInt16BlockInputs]);
                        row_scale = scale * factor;
                        row_offset = offset * factor;
                    }
                    acc[r][p] = fma(row_scale, to_float(Inputs::total(sums[r][p])), acc[r][p]);
                    if (has_offsets) acc[r][p] = fma(row_offset, broadcast(static_cast<float>(group_sums[r])), acc[r][p]);
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
template <class Codes, class Inputs, int R>
[[gnu::always_inline]] inline void codes_row_block(const LinearTask& task, const PanelSet& set, const CodeRowView& rows,
                                                   int32_t row, int64_t next_bytes) {
    constexpr int P = kVectorRegisters == 32 && R <= 4 ? 2 : 1;
    alignas(64) float sums[R * 4 * kLanes];
    const Matrix& matrix = *task.matrix;
    const Prefetcher prefetcher(matrix.panel_bytes / 64, 64, next_bytes);
    const uint8_t* weights[4];
    for (int i = 0; i < set.count; ++i) weights[i] = set.data(matrix, i);
    const int64_t stride = set.count * kLanes;
    prefetch_outputs(task, set, row, R);
    int i = 0;
    for (; i + P <= set.count; i += P)
        codes_microkernel<Codes, Inputs, R, P>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    for (; i < set.count; ++i)
        codes_microkernel<Codes, Inputs, R, 1>(matrix, rows, weights + i, prefetcher, sums + i * kLanes, stride);
    apply_epilogue(task, set, row, R, sums);
}

// Multiplies rows [first, first + count) of the task, which are at `rows`, with all panels.
template <class Codes, class Inputs>
inline void codes_rows(const LinearTask& task, const CodeRowView& rows, int32_t first, int32_t count) {
    for_each_panel_set(task, 2, [&](const PanelSet& set) {
        for_each_row_block(count, kMaxCodeRows, [&](int32_t row, int32_t size) {
            const int64_t next_bytes = row + size < count ? 0 : set.next_bytes;
            dispatch_rows<kMaxCodeRows>(size, [&](auto n) {
                codes_row_block<Codes, Inputs, decltype(n)::value>(task, set, rows.from(row), first + row, next_bytes);
            });
        });
    });
}

// Sums of the activations of each group of a row, `stride` apart.
inline void int8_group_sums(const int8_t* row, const Matrix& matrix, int64_t stride, int32_t* sums) {
    alignas(64) int32_t quads[kLanes];
    const I32x16 ones = broadcast_i32(0x01010101);
    const int64_t groups = num_groups(matrix);
    for (int64_t g = 0; g < groups; ++g) sums[g * stride] = 0;
    for (int64_t k = 0; k < matrix.in_features; k += 64) {
        store_i32(quads, dot4(zero_i32(), ones, load_i32(row + k)));
        for (int64_t quad = 0; quad < kLanes; quad += 4) {
            const int64_t g = (k + 4 * quad) / matrix.groups.inputs;
            if (g < groups) sums[g * stride] += quads[quad] + quads[quad + 1] + quads[quad + 2] + quads[quad + 3];
        }
    }
}

template <class Codes>
inline void linear_codes_int8(const LinearTask& task) {
    const QuantizedRows& activations = task.quantized;
    auto* const group_sums = static_cast<int32_t*>(task.scratch);
    auto* const packed = reinterpret_cast<int8_t*>(static_cast<uint8_t*>(task.scratch) + kGroupSumBytes);
    const int64_t packed_stride = activations.stride * kRowQuadBytes / 4;
    const auto fitting = static_cast<int32_t>(kPackedActivationBytes / packed_stride);
    const int32_t packed_rows = fitting > kMaxCodeRows ? fitting : kMaxCodeRows;
    const int32_t max_rows = kRowQuadBytes == 4 || packed_rows > kGroupSumRows ? kGroupSumRows : packed_rows;
    for_each_row_block(task.rows, max_rows, [&](int32_t first, int32_t count) {
        const int8_t* const rows = activations.data + first * activations.stride;
        for (int32_t r = 0; r < count; ++r) {
            const int8_t* row = rows + r * activations.stride;
            int8_group_sums(row, *task.matrix, count, group_sums + r);
            if constexpr (kRowQuadBytes != 4) pack_activation_row(row, activations.stride, packed + r * packed_stride);
        }
        const bool in_place = kRowQuadBytes == 4;
        const CodeRowView view{
            in_place ? rows : packed, in_place ? activations.stride : packed_stride, group_sums, count, nullptr, 0};
        codes_rows<Codes, Int8Inputs>(task, view, first, count);
    });
}

template <class Codes>
inline void linear_codes_int16(const LinearTask& task) {
    auto* const group_sums = static_cast<int32_t*>(task.scratch);
    const int64_t groups = num_groups(*task.matrix), sums_per_group = task.matrix->groups.inputs / 16;
    for_each_row_block(task.rows, kGroupSumRows, [&](int32_t first, int32_t count) {
        const Int16Rows rows = task.x_int16.from(first);
        for (int32_t r = 0; r < count; ++r) {
            const int32_t* sums = rows.from(r).sums;
            for (int64_t g = 0; g < groups; ++g) {
                int32_t sum = 0;
                for (int64_t i = 0; i < sums_per_group; ++i) sum += sums[g * sums_per_group + i];
                group_sums[g * count + r] = sum;
            }
        }
        codes_rows<Codes, Int16Inputs>(task, {rows.data, rows.stride, group_sums, count, rows.scales, rows.blocks}, first, count);
    });
}

template <class Codes>
inline void linear_codes(const LinearTask& task) {
    task.quantized.data != nullptr ? linear_codes_int8<Codes>(task) : linear_codes_int16<Codes>(task);
}

}  // namespace hasten::HASTEN_ISA
