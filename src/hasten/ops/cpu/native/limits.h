// The shapes that the kernels take: one table, which hasten_get_limits exports. The C interface refuses every other shape when a
// program is recorded. The kernels rely on it and assert at compile time that their scratch and their integers hold the limits.
#pragma once

#include <cstdint>

namespace hasten {

constexpr int64_t kMaxThreads = 4096;
constexpr int64_t kMaxFeatures = int64_t{1} << 26;    // inputs or outputs of a matrix, and columns of a buffer
constexpr int64_t kMaxInt8Inputs = int64_t{1} << 17;  // inputs of a product with int8 activations, or with weights in groups
constexpr int64_t kMaxHeadDim = 512;                  // any number from 1; rotary embeddings need an even one
constexpr int64_t kMaxBlockSize = int64_t{1} << 20;   // tokens
constexpr int64_t kMaxTokens = int64_t{1} << 24;      // of one step
constexpr int64_t kMaxTreeTokens = 64;                // of a draft tree

// A product is a sum of bytes from -127 to 127 times bytes from -128 to 127. Sums in between may wrap, since wrapping is exact.
static_assert(kMaxInt8Inputs * 127 * 128 <= INT32_MAX);

}  // namespace hasten
