// int4 weights: whole numbers s * (nibble - 8) in [-120, 120], where every 16 inputs of an output, a group, share an s.
//
// A block is 576 bytes, nine lines of the cache: 64 inputs of the 16 outputs of a panel. Byte 16 g + o of the first line is s of
// group g of output o, signed. Then two lines for each group: byte 4 o + j of line i holds input 8 i + j of output o in its low
// four bits and input 8 i + 4 + j in its high ones.
#pragma once

#include "panels.h"

namespace hasten::HASTEN_ISA {

constexpr int kInt4Block = 64, kInt4Group = 16;  // inputs
constexpr int kBlockGroups = kInt4Block / kInt4Group;
constexpr int64_t kInt4BlockBytes = 576;
constexpr int kGroupQuads = kInt4Group / 4;

// Where in a block the scales of group g and its line i (0 or 1) begin.
constexpr int64_t scales_at(int64_t g) { return g * kLanes; }
constexpr int64_t nibbles_at(int64_t g, int64_t i) { return 64 + g * 128 + i * 64; }

inline const int8_t* scales_of(const uint8_t* block, int64_t g) { return reinterpret_cast<const int8_t*>(block) + scales_at(g); }
inline const uint8_t* nibble_line(const uint8_t* block, int64_t g, int64_t i) { return block + nibbles_at(g, i); }

// The weight of output `lane` and input k, as a whole number.
inline int weight_of(const uint8_t* panel, int lane, int64_t k) {
    const uint8_t* block = panel + k / kInt4Block * kInt4BlockBytes;
    const int64_t g = k % kInt4Block / kInt4Group;
    const int byte = nibble_line(block, g, k % kInt4Group / 8)[4 * lane + k % 4];
    return scales_of(block, g)[lane] * ((k % 8 < 4 ? byte & 15 : byte >> 4) - 8);
}

// The nibbles of group g: lines [16][4] of 0 to 15, as unsigned bytes.
[[gnu::always_inline]] inline void load_nibbles(const uint8_t* block, int64_t g, I16 (&quads)[kGroupQuads]) {
    const I16 low = ibroadcast(0x0f0f0f0f);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const I16 bytes = iload(nibble_line(block, g, i));
        quads[2 * i] = bytes & low;
        quads[2 * i + 1] = shift_right(bytes, 4) & low;
    }
}

// A group as int8 has it: four lines [16][4] of weights + 128. Two bytes at a time: the numbers a s + 128 - 8 s of a pair of
// nibbles a are from 8 to 248, so that nothing is carried from one byte to the other.
[[gnu::always_inline]] inline void decode_int4(const uint8_t* block, int64_t g, I16 (&quads)[kGroupQuads]) {
    const I16 scales = load_s8_twice(scales_of(block, g));
    const I16 zero_points = add_words(multiply_words(scales, wbroadcast(-8 * 257)), wbroadcast(128 * 257));
    load_nibbles(block, g, quads);
#pragma GCC unroll 4
    for (I16& quad : quads) quad = add_words(multiply_words(quad, scales), zero_points);
}

inline int64_t decoded_int4_bytes(const Matrix& matrix) { return int64_t{matrix.padded_in} * kLanes; }

// A panel as int8 has it: lines [I'/4][16][4]. `ahead`: bytes to a panel that is asked for meanwhile.
inline void decode_int4_panel(const Matrix& matrix, int32_t panel, int64_t ahead, uint8_t* out) {
    const uint8_t* block = matrix.data + panel * matrix.panel_bytes;
    for (int64_t k = 0; k < matrix.padded_in; k += kInt4Block, block += kInt4BlockBytes) {
        for (int64_t byte = 0; byte < kInt4BlockBytes; byte += 64) {
            prefetch(block + kNearBytes + byte);
            prefetch_far(block + ahead + byte);
        }
        for (int g = 0; g < kBlockGroups; ++g) {
            I16 quads[kGroupQuads];
            decode_int4(block, g, quads);
            for (int i = 0; i < kGroupQuads; ++i, out += 64) istore(out, quads[i]);
        }
    }
}

}  // namespace hasten::HASTEN_ISA
