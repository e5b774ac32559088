// bf16 weights in 12 bits, without loss: of a trained matrix's exponents 14 in a row serve all but a few weights in ten thousand
// (Zhang et al., "70% Size, 100% Accuracy", 2025, code exponents for the same reason). Those few are exceptions, as in Zukowski
// et al., "Super-Scalar RAM-CPU Cache Compression" (2006): a list beside the panel, so that decoding needs no branches.
//
// A weight's lower byte, the last bit of its exponent and the fraction, is kept as it is. Its upper byte, the sign and the upper
// seven bits of the exponent, becomes four bits: 8 for the sign, and a code. Code 0: the seven bits are 0; code c: base + c.
//
// A unit is 192 bytes: 8 inputs of the 16 outputs of a panel, four lines of two inputs. Bytes 0 to 127: lower bytes; of the lines
// 2 h and 2 h + 1 (h: 0 or 1) they lie from 64 h on. There, byte 16 (o / 4) + 8 (line % 2) + 2 (o % 4) + input % 2 is that of
// output o. Bytes 128 to 191: the four bits of its upper byte are in byte % 64 of these, the low ones for the first two lines and
// the high ones for the others. In this order two byte interleavings make bf16 pairs.
#pragma once

#include "../simd/math.h"
#include "panels.h"

namespace hasten::HASTEN_ISA {

constexpr int kUnitInputs = 8;
constexpr int64_t kUnitBytes = 192;
constexpr int kCodes = 7;

inline int unit_byte(int lane, int line) { return 64 * (line / 2) + 16 * (lane / 4) + 8 * (line % 2) + 2 * (lane % 4); }

// The upper seven bits of the exponent.
inline int exponent_of(uint16_t bits) { return bits >> 8 & 0x7f; }

// The base from the greatest such exponent of an output.
inline int base_of(int greatest) { return greatest > kCodes ? greatest - kCodes : 0; }

// The code of a weight: of its exponent; -1 if it has none.
inline int code_of(uint16_t bits, int base) {
    const int exponent = exponent_of(bits);
    if (exponent == 0) return 0;
    return exponent > base ? exponent - base : -1;
}

// 8 inputs of one output into a unit. exception(i): input i has no code.
template <class Exceptional>
inline void code_unit(const uint16_t* weights, int base, int lane, uint8_t* unit, Exceptional exception) {
    for (int line = 0; line < 2; ++line) {
        uint8_t codes[2] = {};
        for (int half = 0; half < 2; ++half) {
            uint8_t lower[2];
            for (int j = 0; j < 2; ++j) {
                const int i = 4 * half + 2 * line + j;
                const int code = code_of(weights[i], base);
                if (code < 0) exception(i);
                lower[j] = static_cast<uint8_t>(code < 0 ? 0 : weights[i]);
                codes[j] = static_cast<uint8_t>(codes[j] | (code < 0 ? 0 : (weights[i] >> 15) * 8 + code) << 4 * half);
            }
            memcpy(unit + unit_byte(lane, 2 * half + line), lower, 2);
        }
        memcpy(unit + 128 + unit_byte(lane, line), codes, 2);
    }
}

// Input i of output `lane`, as it stands in the unit.
inline uint16_t decode_one(const uint8_t* unit, int lane, int i, int base) {
    const int line = i / 2, at = unit_byte(lane, line) + i % 2;
    const int four = unit[128 + at % 64] >> 4 * (line / 2) & 15, code = four & 7, exponent = code == 0 ? 0 : base + code;
    return static_cast<uint16_t>((four & 8) << 12 | exponent << 8 | unit[at]);
}

// The exceptions of a panel.
struct Exceptions {
    const Exception *first, *last;

    Exceptions(const Matrix& matrix, int32_t panel)
        : first(matrix.exceptions + int64_t{panel} * matrix.max_exceptions), last(first + matrix.num_exceptions[panel]) {}
    const Exception* begin() const { return first; }
    const Exception* end() const { return last; }
};

inline float float_of_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

// Adds to sums [rows][sums_stride], of a panel's 16 outputs, what its exceptions contribute: after the other inputs, in every form.
inline void add_exceptions(const Matrix& matrix, int32_t panel, const Rows& x, int32_t row, int32_t rows, float* sums,
                           int64_t sums_stride) {
    for (const Exception& exception : Exceptions(matrix, panel)) {
        const float weight = float_of_bf16(exception.bits);
        for (int32_t r = 0; r < rows; ++r) {
            float& sum = sums[r * sums_stride + exception.lane];
            sum = __builtin_fmaf(weight, x.data[(row + r) * x.stride + exception.input], sum);
        }
    }
}

// Two panels as plain bf16 has them fit in scratch.
inline int64_t decoded_bytes(const Matrix& matrix) { return int64_t{matrix.padded_in} * 2 * kLanes; }
inline bool decodes(const Matrix& matrix) { return 2 * decoded_bytes(matrix) <= kLinearScratch; }

// A panel as plain bf16 has it, with zeros for its exceptions. `ahead`: bytes to a panel that is asked for meanwhile.
inline void decode_lines(const Matrix& matrix, int32_t panel, int64_t ahead, uint8_t* out) {
    const uint8_t* unit = matrix.data + panel * matrix.panel_bytes;
    const I16 base = iload(matrix.bases + panel * 64);
    for (int64_t k = 0; k < matrix.padded_in; k += kUnitInputs, unit += kUnitBytes) {
        I16 lines[4];
        for (int64_t byte = 0; byte < kUnitBytes; byte += 64) {
            prefetch(unit + kNearBytes + byte);
            prefetch_far(unit + ahead + byte);
        }
        decode_bf16(unit, base, lines);
        for (int i = 0; i < 4; ++i) istore(out + (k / 2 + i) * 64, lines[i]);
    }
}

// The exceptions in their places among decoded lines.
inline void place_exceptions(const Matrix& matrix, int32_t panel, uint8_t* lines) {
    for (const Exception& exception : Exceptions(matrix, panel)) {
        memcpy(lines + exception.input / 2 * 64 + exception.lane * 4 + exception.input % 2 * 2, &exception.bits, 2);
    }
}

}  // namespace hasten::HASTEN_ISA
