// Layout of weights that were quantised before they came here: codes of 4 or 8 bits, or FP8 numbers (e4m3), in groups of inputs.
//
// A group starts with a line of 16 float scales, one for each output of the panel, and with a line of 16 float offsets if the
// matrix has them. Lines of codes follow. Byte 4 o + j of line i belongs to output o:
//   codes4       its low half is input 8 i + j, its high half input 8 i + 4 + j
//   codes8, fp8  it is input 4 i + j
// A weight is scale * code + offset, rounded once; without offsets it is scale * (code - zero), where zero is 8 or 128. The scale
// of FP8 numbers is stored times 2^120 (see Fp8Weights).
#pragma once

#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

// Where the parts of a group are.
struct GroupLayout {
    int64_t inputs, bytes, codes_begin, line_inputs;

    explicit GroupLayout(const Matrix& matrix)
        : inputs(matrix.group_inputs),
          bytes(group_bytes(matrix.dtype, matrix.group_inputs, matrix.has_offsets)),
          codes_begin(matrix.has_offsets ? 128 : 64),
          line_inputs(matrix.dtype == Dtype::codes4 ? 8 : 4) {}

    // Lines of codes of a group whose first input is k. The last group may be shorter.
    int64_t lines(int64_t k, int64_t in_features) const {
        const int64_t remaining = in_features - k < inputs ? in_features - k : inputs;
        return (remaining + line_inputs - 1) / line_inputs;
    }
};

constexpr float kFp8ScaleFactor = 0x1p120f;
constexpr float code_zero(Dtype dtype, bool has_offsets) { return has_offsets ? 0.0f : dtype == Dtype::codes4 ? 8.0f : 128.0f; }

inline const float* group_scales(const uint8_t* group) { return reinterpret_cast<const float*>(group); }
inline const float* group_offsets(const uint8_t* group) { return reinterpret_cast<const float*>(group + 64); }

// The codes of a line, as quads of unsigned bytes: the four inputs of an output side by side.
struct Codes4 {
    static constexpr int kQuads = 2;
    static void load(const uint8_t* line, I32x16 (&quads)[kQuads]) {
        const I32x16 bytes = load_i32(line), low = broadcast_i32(0x0f0f0f0f);
        quads[0] = bytes & low;
        quads[1] = shift_right(bytes, 4) & low;
    }
};
struct Codes8 {
    static constexpr int kQuads = 1;
    static void load(const uint8_t* line, I32x16 (&quads)[kQuads]) { quads[0] = load_i32(line); }
};

// The reader of FP8 numbers: a step is one line. Sign, four bits of exponent with bias 7, three of fraction. At their place in a
// float, whose exponent has the bias 127, they are 2^-120 times the number, exactly and for subnormal numbers too.
struct Fp8Weights {
    static constexpr int kStepInputs = 4, kStepBytes = 64;

    [[gnu::always_inline]] void dequantize(const uint8_t* line, F32x16 scale, F32x16 (&w)[kStepInputs]) const {
        const I32x16 quads = load_i32(line), mask = broadcast_i32(static_cast<int32_t>(0x87f00000u));
        w[0] = as_float(shift_right_signed(shift_left(quads, 24), 4) & mask) * scale;
        w[1] = as_float(shift_right_signed(shift_left(quads, 16), 4) & mask) * scale;
        w[2] = as_float(shift_right_signed(shift_left(quads, 8), 4) & mask) * scale;
        w[3] = as_float(shift_right_signed(quads, 4) & mask) * scale;
    }
};

// The weight of output `lane` and input k of a panel.
inline float grouped_weight(const Matrix& matrix, const uint8_t* panel, int lane, int64_t k) {
    const GroupLayout layout(matrix);
    const uint8_t* group = panel + k / layout.inputs * layout.bytes;
    const int64_t i = k % layout.inputs;
    const int byte = group[layout.codes_begin + i / layout.line_inputs * 64 + 4 * lane + i % 4];
    const float scale = group_scales(group)[lane];
    if (matrix.dtype == Dtype::fp8) {
        const uint32_t bits = (static_cast<uint32_t>(byte) << 24 & 0x80000000u) | (static_cast<uint32_t>(byte) & 0x7f) << 20;
        float value;
        memcpy(&value, &bits, 4);
        return value * scale;
    }
    const int code = matrix.dtype == Dtype::codes8 ? byte : i % 8 < 4 ? byte & 15 : byte >> 4;
    const float centred = static_cast<float>(code) - code_zero(matrix.dtype, matrix.has_offsets);
    return matrix.has_offsets ? __builtin_fmaf(scale, centred, group_offsets(group)[lane]) : scale * centred;
}

}  // namespace hasten::HASTEN_ISA
