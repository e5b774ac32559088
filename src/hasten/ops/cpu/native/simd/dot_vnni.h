// Integer dot products with VNNI, which multiplies bytes and adds in 32 bits (dot4 of the instruction set).
#pragma once

namespace hasten::HASTEN_ISA {

// Rows of signed activations times quads of unsigned weights. Packing copies the rows.
constexpr int kRowQuadBytes = 4;
using WeightQuads = I32x16;
using RowQuad = I32x16;
inline WeightQuads widen_quads(I32x16 quads) { return quads; }
inline WeightQuads load_weight_quads(const uint8_t* p) { return load_i32(p); }
inline RowQuad load_row_quad(const char* p) {
    int32_t quad;
    memcpy(&quad, p, 4);
    return broadcast_i32(quad);
}
// Four activations of 16 bits: their upper bytes, then their lower bytes, all signed.
struct Int16Quad {
    I32x16 high, low;
};
inline Int16Quad load_int16_quad(const char* p) { return {load_row_quad(p), load_row_quad(p + 4)}; }
// Sums of products of unsigned weights and such activations.
struct Int16Sums {
    I32x16 high, low;
};
inline Int16Sums int16_sums(int32_t initial) { return {zero_i32(), broadcast_i32(initial)}; }
inline void add_products(Int16Sums& sums, WeightQuads u, const Int16Quad& s) {
    sums.high = dot4(sums.high, u, s.high);
    sums.low = dot4(sums.low, u, s.low);
}
inline I32x16 total(const Int16Sums& sums) { return shift_left(sums.high, 8) + sums.low; }

inline void pack_activation_row(const int8_t* row, int64_t bytes, int8_t* out) { memcpy(out, row, static_cast<size_t>(bytes)); }

// Sums of up to 16 products of nibbles (0 to 15) and signed bytes in each lane. Exact.
//
// initial_nibble_sum: the initial value of all lanes for sums that start at -8 * x, where x is a sum of 16 signed bytes.
inline int32_t initial_nibble_sum(int32_t x) { return -8 * x; }
inline I32x16 dot_nibbles(I32x16 sums, I32x16 nibbles, I32x16 s) { return dot4(sums, nibbles, s); }
inline void prevent_reassociation(I32x16&) {}

// Products of value bytes with 15-bit softmax weights (0 to 32,767). The high bytes of 64 weights lie together, then the low bytes.
// The products of both planes are summed separately.
constexpr int kWeightPlanes = 2;
using ValueWeights = I32x16;
using ValueQuads = I32x16;
// The four weights of quad `quad` of 64.
inline ValueWeights load_weights(const uint8_t* weights, int plane, int quad) {
    return load_row_quad(reinterpret_cast<const char*>(weights) + plane * 64 + quad * kRowQuadBytes);
}
inline ValueQuads value_quads(I32x16 bytes) { return bytes; }
inline I32x16 add_weighted(I32x16 acc, ValueWeights w, ValueQuads v) { return dot4(acc, w, v); }
// Reads one of the 64 weights and clears it.
inline int32_t extract_weight(uint8_t* weights, int64_t i) {
    const int32_t taken = weights[i] * 256 + weights[64 + i];
    weights[i] = weights[64 + i] = 0;
    return taken;
}
// Adds the products of one weight and 16 integer values to the sums of both planes, `stride` apart.
inline void add_products(int32_t* sums, int64_t stride, int32_t weight, I32x16 values) {
    store_i32(sums, load_i32(sums) + broadcast_i32(weight >> 8) * values);
    store_i32(sums + stride, load_i32(sums + stride) + broadcast_i32(weight & 255) * values);
}
// Combines 16 sums of both planes, `stride` apart and each below 2^24 in magnitude. Rounds once.
inline F32x16 combine_planes(const int32_t* sums, int64_t stride) {
    return fma(to_float(load_i32(sums)), broadcast(256.0f), to_float(load_i32(sums + stride)));
}

}  // namespace hasten::HASTEN_ISA
