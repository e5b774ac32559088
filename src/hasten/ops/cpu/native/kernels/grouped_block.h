// Layout of weights that were quantised before they came here: codes of 4 or 8 bits, or FP8 numbers (e4m3), in groups of inputs.
//
// A panel is a row of blocks. A block is a group: a line of 16 float scales, one for each output of the panel, a line of 16 float
// offsets if the matrix has them, and lines of codes. Byte 4 o + j of line i belongs to output o:
//   codes4       its low half is input 8 i + j, its high half input 8 i + 4 + j
//   codes8, fp8  it is input 4 i + j
// A block of nested groups has 256 inputs. It starts with a line of 16 float16 scales and 16 float16 offsets of the block; then
// each group has 16 signed bytes of scales, and 16 of offsets if there are any, up to the next multiple of 64; then the lines of
// codes.
//
// A weight is scale * code + offset, rounded once; without offsets it is scale * (code - zero), where zero is 8 or 128. The scale
// of FP8 numbers is stored times 2^60 (kernels/linear_fp8.h). Nested scales and offsets are exact products.
#pragma once

#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

// Where the parts of a block are.
struct BlockLayout {
    Groups groups;
    int64_t inputs, bytes, codes_begin, line_inputs;

    explicit BlockLayout(const Matrix& matrix)
        : groups(matrix.groups),
          inputs(matrix.groups.block_inputs()),
          bytes(block_bytes(matrix.dtype, matrix.groups)),
          codes_begin(block_codes_begin(matrix.groups)),
          line_inputs(matrix.dtype == Dtype::codes4 ? 8 : 4) {}

    // Lines of codes of a group whose first input is k. The last group may be shorter.
    int64_t lines(int64_t k, int64_t in_features) const {
        const int64_t remaining = in_features - k < groups.inputs ? in_features - k : groups.inputs;
        return (remaining + line_inputs - 1) / line_inputs;
    }
    // The bytes of scales, or of offsets, of nested group g of a block.
    const int8_t* nested(const uint8_t* block, int64_t g, int64_t value) const {
        return reinterpret_cast<const int8_t*>(block) + 64 + (g * (groups.has_offsets ? 2 : 1) + value) * kLanes;
    }
    // The scales and the offsets of group g of a block, for its 16 outputs.
    [[gnu::always_inline]] F32x16 scales(const uint8_t* block, int64_t g) const {
        if (!groups.is_nested) return load(reinterpret_cast<const float*>(block));
        return load_s8(nested(block, g, 0)) * load_f16(reinterpret_cast<const uint16_t*>(block));
    }
    [[gnu::always_inline]] F32x16 offsets(const uint8_t* block, int64_t g) const {
        if (!groups.is_nested) return load(reinterpret_cast<const float*>(block + 64));
        return load_s8(nested(block, g, 1)) * load_f16(reinterpret_cast<const uint16_t*>(block + 32));
    }
};

constexpr float kFp8Factor = 0x1p60f;
constexpr float code_zero(Dtype dtype, bool has_offsets) { return has_offsets ? 0.0f : dtype == Dtype::codes4 ? 8.0f : 128.0f; }

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

// The weight of output `lane` and input k of a panel.
inline float grouped_weight(const Matrix& matrix, const uint8_t* panel, int lane, int64_t k) {
    const BlockLayout layout(matrix);
    const uint8_t* block = panel + k / layout.inputs * layout.bytes;
    const int64_t i = k % layout.inputs, g = i / layout.groups.inputs;
    const int byte = block[layout.codes_begin + i / layout.line_inputs * 64 + 4 * lane + i % 4];
    alignas(64) float scales[kLanes], offsets[kLanes] = {};
    store(scales, layout.scales(block, g));
    if (matrix.dtype == Dtype::fp8) {
        const uint32_t bits = (static_cast<uint32_t>(byte) << 24 & 0x80000000u) | (static_cast<uint32_t>(byte) & 0x7f) << 20;
        float value;
        memcpy(&value, &bits, 4);
        return value * kFp8Factor * scales[lane];
    }
    if (layout.groups.has_offsets) store(offsets, layout.offsets(block, g));
    const int code = matrix.dtype == Dtype::codes8 ? byte : i % 8 < 4 ? byte & 15 : byte >> 4;
    const float centred = static_cast<float>(code) - code_zero(matrix.dtype, layout.groups.has_offsets);
    return layout.groups.has_offsets ? __builtin_fmaf(scales[lane], centred, offsets[lane]) : scales[lane] * centred;
}

}  // namespace hasten::HASTEN_ISA
