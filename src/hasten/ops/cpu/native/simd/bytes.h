// Products of integers where an instruction multiplies bytes and adds up in 32 bits: dot4 of the instruction set.
#pragma once

namespace hasten::HASTEN_ISA {

// Rows of signed bytes times quads of unsigned ones, prepared: as they are.
constexpr int kRowQuadBytes = 4;
using WeightQuads = I16;
using RowQuad = I16;
inline WeightQuads load_weight_quads(const uint8_t* p) { return iload(p); }
inline RowQuad load_row_quad(const char* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return ibroadcast(quad);
}
inline void prepare_row(const int8_t* row, int64_t bytes, int8_t* out) { memcpy(out, row, static_cast<size_t>(bytes)); }

// Sums of up to 16 products of a byte below 16 and a signed byte, in each lane. Exact.
// nibble_start: what all lanes begin with so that their sums begin at -8 * x, for an x that 16 signed bytes can have as their sum.
inline int32_t nibble_start(int32_t x) { return -8 * x; }
inline I16 dot_nibbles(I16 sums, I16 nibbles, I16 s) { return dot4(sums, nibbles, s); }
inline void keep_order(I16&) {}

// Products of bytes with 15-bit weights, whole numbers of 0 to 32,767. Of 64 weights the upper bytes lie together, then the lower
// ones, and products of both are added up by themselves.
constexpr int kWeightPlanes = 2;
using ValueWeights = I16;
using ValueQuads = I16;
// The four weights of quad `quad` of 64.
inline ValueWeights load_weights(const uint8_t* weights, int plane, int quad) {
    return load_row_quad(reinterpret_cast<const char*>(weights) + plane * 64 + quad * kRowQuadBytes);
}
inline ValueQuads value_quads(I16 bytes) { return bytes; }
inline I16 add_weighted(I16 acc, ValueWeights w, ValueQuads v) { return dot4(acc, w, v); }
// One of the 64 weights, which is 0 from here on.
inline int32_t take_weight(uint8_t* weights, int64_t i) {
    const int32_t taken = weights[i] * 256 + weights[64 + i];
    weights[i] = weights[64 + i] = 0;
    return taken;
}
// Sums of one weight and 16 values, whole numbers, of planes that lie `stride` apart.
inline void add_products(int32_t* sums, int64_t stride, int32_t weight, I16 values) {
    istore(sums, iload(sums) + ibroadcast(weight >> 8) * values);
    istore(sums + stride, iload(sums + stride) + ibroadcast(weight & 255) * values);
}
// 16 sums of products from those of the planes, each below 2^24 in magnitude, which lie `stride` apart: rounded once.
inline F16 whole_sums(const int32_t* sums, int64_t stride) {
    return fma(to_float(iload(sums)), broadcast(256.0f), to_float(iload(sums + stride)));
}

}  // namespace hasten::HASTEN_ISA
