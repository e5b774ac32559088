// Lossless compression of bf16 weights to 12 bits. In a trained matrix 14 consecutive exponents cover all but a few weights in ten
// thousand. Zhang et al., "70% Size, 100% Accuracy", 2025, entropy-code the exponents for the same reason. The other weights are
// outliers in a list beside the panel, so that decompression has no branches. They are the exceptions of Zukowski et al.,
// "Super-Scalar RAM-CPU Cache Compression", 2006.
//
// The low byte of a weight (last exponent bit and fraction) is stored as it is. The high byte (sign and upper seven exponent bits)
// is stored as a nibble: 8 for the sign, plus a code. Code 0 means that the seven bits are 0, and code c that they are base + c.
//
// A block is 192 bytes: 8 inputs of the 16 outputs of a panel, in four pairs of inputs. Bytes 0 to 127 are low bytes. Those of
// pairs 2 h and 2 h + 1 (h: 0 or 1) start at 64 h, where byte 16 (o / 4) + 8 (pair % 2) + 2 (o % 4) + input % 2 belongs to output
// o. Bytes 128 to 191 are nibbles. Byte 128 + b % 64 holds the nibble of low byte b: in its low half for pairs 0 and 1, else in its
// high half. In this order two byte interleavings restore pairs of bf16.
#pragma once

#include "../simd/vector_math.h"
#include "gemm_blocking.h"

namespace hasten::HASTEN_ISA {

constexpr int kBf16BlockInputs = 8;
constexpr int64_t kBf16BlockBytes = 192;
constexpr int kMaxExponentCode = 7;

inline int block_byte(int lane, int pair) { return 64 * (pair / 2) + 16 * (lane / 4) + 8 * (pair % 2) + 2 * (lane % 4); }

// The upper seven bits of the exponent.
inline int exponent_high_bits(uint16_t bits) { return bits >> 8 & 0x7f; }

// The exponent base of an output, from its largest exponent.
inline int exponent_base_of(int greatest) { return greatest > kMaxExponentCode ? greatest - kMaxExponentCode : 0; }

// The code of a weight's exponent, or -1 if it has none.
inline int exponent_code(uint16_t bits, int base) {
    const int exponent = exponent_high_bits(bits);
    if (exponent == 0) return 0;
    return exponent > base ? exponent - base : -1;
}

// Compresses 8 inputs of one output into a block. Calls outlier(i) if input i has no code.
template <class OnOutlier>
inline void compress_block(const uint16_t* weights, int base, int lane, uint8_t* block, OnOutlier outlier) {
    for (int pair = 0; pair < 2; ++pair) {
        uint8_t codes[2] = {};
        for (int half = 0; half < 2; ++half) {
            uint8_t lower[2];
            for (int j = 0; j < 2; ++j) {
                const int i = 4 * half + 2 * pair + j;
                const int code = exponent_code(weights[i], base);
                if (code < 0) outlier(i);
                lower[j] = static_cast<uint8_t>(code < 0 ? 0 : weights[i]);
                codes[j] = static_cast<uint8_t>(codes[j] | (code < 0 ? 0 : (weights[i] >> 15) * 8 + code) << 4 * half);
            }
            memcpy(block + block_byte(lane, 2 * half + pair), lower, 2);
        }
        memcpy(block + 128 + block_byte(lane, pair), codes, 2);
    }
}

// Decompresses input i of output `lane` from a block, without outliers.
inline uint16_t decompress_weight(const uint8_t* block, int lane, int i, int base) {
    const int pair = i / 2, at = block_byte(lane, pair) + i % 2;
    const int nibble = block[128 + at % 64] >> 4 * (pair / 2) & 15, code = nibble & 7, exponent = code == 0 ? 0 : base + code;
    return static_cast<uint16_t>((nibble & 8) << 12 | exponent << 8 | block[at]);
}

// The outliers of a panel, as a range.
struct PanelOutliers {
    const Outlier *first, *last;

    PanelOutliers(const Matrix& matrix, int32_t panel)
        : first(matrix.outliers + int64_t{panel} * matrix.max_outliers), last(first + matrix.num_outliers[panel]) {}
    const Outlier* begin() const { return first; }
    const Outlier* end() const { return last; }
};

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

// Adds the outlier products of a panel to sums [rows][sums_stride], after those of the other inputs in every form.
inline void add_outlier_products(const Matrix& matrix, int32_t panel, const Rows& x, int32_t row, int32_t rows, float* sums,
                                 int64_t sums_stride) {
    for (const Outlier& outlier : PanelOutliers(matrix, panel)) {
        const float weight = bf16_to_float(outlier.bits);
        for (int32_t r = 0; r < rows; ++r) {
            float& sum = sums[r * sums_stride + outlier.lane];
            sum = __builtin_fmaf(weight, x.data[(row + r) * x.stride + outlier.input], sum);
        }
    }
}

// Two panels of plain bf16 fit in scratch.
inline int64_t bf16_panel_bytes(const Matrix& matrix) { return int64_t{matrix.padded_in} * 2 * kLanes; }
inline bool bf16_panels_fit_scratch(const Matrix& matrix) { return 2 * bf16_panel_bytes(matrix) <= kLinearScratch; }

// Decompresses a panel to plain bf16, with zeros for outliers. next_bytes: from the panel to the panel to prefetch.
inline void decompress_panel(const Matrix& matrix, int32_t panel, int64_t next_bytes, uint8_t* out) {
    const uint8_t* block = matrix.data + panel * matrix.panel_bytes;
    const I32x16 base = load_i32(matrix.exponent_bases + panel * 64);
    for (int64_t k = 0; k < matrix.padded_in; k += kBf16BlockInputs, block += kBf16BlockBytes) {
        I32x16 pairs[4];
        for (int64_t byte = 0; byte < kBf16BlockBytes; byte += 64) {
            prefetch(block + kNearPrefetchBytes + byte);
            prefetch_far(block + next_bytes + byte);
        }
        decompress_bf16(block, base, pairs);
        for (int i = 0; i < 4; ++i) store_i32(out + (k / 2 + i) * 64, pairs[i]);
    }
}

// Writes the outliers into a decompressed panel.
inline void scatter_outliers(const Matrix& matrix, int32_t panel, uint8_t* pairs) {
    for (const Outlier& outlier : PanelOutliers(matrix, panel)) {
        memcpy(pairs + outlier.input / 2 * 64 + outlier.lane * 4 + outlier.input % 2 * 2, &outlier.bits, 2);
    }
}

}  // namespace hasten::HASTEN_ISA
