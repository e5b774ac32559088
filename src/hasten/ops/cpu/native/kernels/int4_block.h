// Layout of int4 weights: integers s * (nibble - 8) in [-120, 120], with one group scale s for every 16 inputs of an output.
//
// A block is 576 bytes, nine cache lines: 64 inputs of the 16 outputs of a panel. Byte 16 g + o of the first line is the signed
// scale s of group g and output o. Two lines of nibbles follow for each group. Byte 4 o + j of line i belongs to output o: its low
// half is input 8 i + j, its high half input 8 i + 4 + j.
#pragma once

#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

constexpr int kInt4BlockInputs = 64, kInt4GroupInputs = 16;
constexpr int kInt4BlockGroups = kInt4BlockInputs / kInt4GroupInputs;
constexpr int64_t kInt4BlockBytes = 576;
constexpr int kInt4GroupQuads = kInt4GroupInputs / 4;

// Offsets within a block: the scales of group g, and nibble line i (0 or 1) of group g.
constexpr int64_t group_scales_offset(int64_t g) { return g * kLanes; }
constexpr int64_t group_nibbles_offset(int64_t g, int64_t i) { return 64 + g * 128 + i * 64; }

inline const int8_t* group_scales(const uint8_t* block, int64_t g) {
    return reinterpret_cast<const int8_t*>(block) + group_scales_offset(g);
}
inline const uint8_t* group_nibbles(const uint8_t* block, int64_t g, int64_t i) { return block + group_nibbles_offset(g, i); }

// The weight of output `lane` and input k, as an integer.
inline int int4_weight(const uint8_t* panel, int lane, int64_t k) {
    const uint8_t* block = panel + k / kInt4BlockInputs * kInt4BlockBytes;
    const int64_t g = k % kInt4BlockInputs / kInt4GroupInputs;
    const int byte = group_nibbles(block, g, k % kInt4GroupInputs / 8)[4 * lane + k % 4];
    return group_scales(block, g)[lane] * ((k % 8 < 4 ? byte & 15 : byte >> 4) - 8);
}

// Loads the nibbles of group g as unsigned bytes 0 to 15: four lines [16][4].
[[gnu::always_inline]] inline void load_nibbles(const uint8_t* block, int64_t g, I32x16 (&quads)[kInt4GroupQuads]) {
    const I32x16 low = broadcast_i32(0x0f0f0f0f);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const I32x16 bytes = load_i32(group_nibbles(block, g, i));
        quads[2 * i] = bytes & low;
        quads[2 * i + 1] = shift_right(bytes, 4) & low;
    }
}

// Converts a group to int8: four lines [16][4] of weights + 128. Each 16-bit operation converts two bytes. n * s + 128 - 8 * s is
// from 8 to 248 for each nibble n, so no carry crosses between them.
[[gnu::always_inline]] inline void int4_group_to_int8(const uint8_t* block, int64_t g, I32x16 (&quads)[kInt4GroupQuads]) {
    const I32x16 scales = load_s8_as_i16_pairs(group_scales(block, g));
    const I32x16 zero_points = add_i16(multiply_i16(scales, broadcast_i16(-8 * 257)), broadcast_i16(128 * 257));
    load_nibbles(block, g, quads);
#pragma GCC unroll 4
    for (I32x16& quad : quads) quad = add_i16(multiply_i16(quad, scales), zero_points);
}

inline int64_t int8_panel_bytes(const Matrix& matrix) { return int64_t{matrix.padded_in} * kLanes; }

// Converts a panel to int8: lines [I'/4][16][4]. next_bytes: from the panel to the panel to prefetch.
inline void int4_panel_to_int8(const Matrix& matrix, int32_t panel, int64_t next_bytes, uint8_t* out) {
    const uint8_t* block = matrix.data + panel * matrix.panel_bytes;
    for (int64_t k = 0; k < matrix.padded_in; k += kInt4BlockInputs, block += kInt4BlockBytes) {
        for (int64_t byte = 0; byte < kInt4BlockBytes; byte += 64) {
            prefetch(block + kNearPrefetchBytes + byte);
            prefetch_far(block + next_bytes + byte);
        }
        for (int g = 0; g < kInt4BlockGroups; ++g) {
            I32x16 quads[kInt4GroupQuads];
            int4_group_to_int8(block, g, quads);
            for (int i = 0; i < kInt4GroupQuads; ++i, out += 64) store_i32(out, quads[i]);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
