// int4 weights: whole numbers s * (nibble - 8) in [-120, 120], where every 16 inputs of an output share an s.
//
// A group is 144 bytes: 16 inputs of the 16 outputs of a panel. Byte o of the first 16 is s of output o, signed. Then two lines of
// 64 bytes: byte 4 o + j of line i holds input 8 i + j of output o in its low four bits and input 8 i + 4 + j in its high ones.
#pragma once

#include "panels.h"

namespace hasten::HASTEN_ISA {

constexpr int kInt4Group = 16;  // inputs
constexpr int64_t kInt4GroupBytes = 144;
constexpr int kGroupQuads = kInt4Group / 4;

inline const int8_t* scales_of(const uint8_t* group) { return reinterpret_cast<const int8_t*>(group); }
inline const uint8_t* nibble_line(const uint8_t* group, int64_t i) { return group + kLanes + i * 64; }

// The weight of output `lane` and input k, as a whole number.
inline int weight_of(const uint8_t* panel, int lane, int64_t k) {
    const uint8_t* group = panel + k / kInt4Group * kInt4GroupBytes;
    const int byte = nibble_line(group, k % kInt4Group / 8)[4 * lane + k % 4];
    return scales_of(group)[lane] * ((k % 8 < 4 ? byte & 15 : byte >> 4) - 8);
}

// A group as int8 has it: four lines [16][4] of weights + 128. Two bytes at a time: the numbers a s + 128 - 8 s of a pair of
// nibbles a are from 8 to 248, so that nothing is carried from one byte to the other.
[[gnu::always_inline]] inline void decode_int4(const uint8_t* group, I16 (&quads)[kGroupQuads]) {
    const I16 scales = load_s8_twice(scales_of(group));
    const I16 zero_points = add_words(multiply_words(scales, wbroadcast(-8 * 257)), wbroadcast(128 * 257));
    const I16 low = ibroadcast(0x0f0f0f0f);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const I16 bytes = iload(nibble_line(group, i));
        quads[2 * i] = add_words(multiply_words(bytes & low, scales), zero_points);
        quads[2 * i + 1] = add_words(multiply_words(shift_right(bytes, 4) & low, scales), zero_points);
    }
}

inline int64_t decoded_int4_bytes(const Matrix& matrix) { return int64_t{matrix.padded_in} * kLanes; }

// A panel as int8 has it: lines [I'/4][16][4]. `ahead`: bytes to a panel that is asked for meanwhile.
inline void decode_int4_panel(const Matrix& matrix, int32_t panel, int64_t ahead, uint8_t* out) {
    const uint8_t* group = matrix.data + panel * matrix.panel_bytes;
    for (int64_t k = 0; k < matrix.padded_in; k += kInt4Group, group += kInt4GroupBytes) {
        for (int64_t byte = 0; byte < kInt4GroupBytes; byte += 64) {
            prefetch(group + kNearBytes + byte);
            prefetch_far(group + ahead + byte);
        }
        I16 quads[kGroupQuads];
        decode_int4(group, quads);
        for (int i = 0; i < kGroupQuads; ++i, out += 64) istore(out, quads[i]);
    }
}

}  // namespace hasten::HASTEN_ISA
