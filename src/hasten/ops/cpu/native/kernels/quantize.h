// Dynamic quantisation of a row to int8, the last stage of the norm and activation kernels.
#pragma once

#include "../simd/vector_math.h"

namespace hasten::HASTEN_ISA {

// The range of a row: max|x|, or NaN if any x is NaN or infinite.
struct AbsMaxRange {
    F32x16 absmax_lanes = zero();
    F32x16 nan_lanes = zero();

    void add(F32x16 x) {
        absmax_lanes = max(absmax_lanes, abs(x));
        nan_lanes = fma(x, zero(), nan_lanes);
    }
    float absmax() const { return reduce_max(absmax_lanes) + reduce_add(nan_lanes); }
};

// Rows with a smaller maximum are quantised to zero, since 127 / absmax would overflow.
constexpr float kMinAbsMax = 1e-30f;

struct QuantScale {
    float scale, inverse;
    explicit QuantScale(float absmax) : scale(absmax / 127.0f), inverse(127.0f / absmax) {
        if (absmax <= kMinAbsMax) scale = inverse = 0.0f;
    }
};

// Stores the sum of row t, for the zero-point correction of products. Sums of four products with ones are exact.
inline void store_row_sum(const QuantizedRows& rows, int64_t t) {
    const int8_t* data = rows.data + t * rows.stride;
    const I32x16 ones = broadcast_i32(0x01010101);
    I32x16 acc = zero_i32();
    for (int64_t i = 0; i < rows.stride; i += 64) acc = dot4(acc, ones, load_i32(data + i));
    rows.sums[t] = reduce_add(acc);
}

// Row t of `rows` = round(value / scale), ties to even, with scale = absmax / 127 and zeros from the width on. value(i): columns i
// to i + 15, zeros past the width. A row with a NaN or an infinity gets the scale NaN.
template <class Value>
inline void quantize_row(const Value& value, int32_t width, float absmax, const QuantizedRows& rows, int64_t t) {
    const QuantScale quant(absmax);
    const F32x16 inverse = broadcast(quant.inverse);
    int8_t* data = rows.data + t * rows.stride;
    int64_t i = 0;
    for (; i < width; i += 16) store_s8(data + i, value(i) * inverse);
    for (; i < rows.stride; i += 16) store_s8(data + i, zero());
    rows.scales[t] = quant.scale;
    if (rows.sums != nullptr) store_row_sum(rows, t);
}

// Writes value(i) of row t to `out` and, quantised, to `rows`, each if its data is set. `staging` keeps the row between the two
// passes; null: values are computed twice.
template <class Value>
inline void store_row(const Value& value, int32_t width, const Rows& out, const QuantizedRows& rows, int64_t t, float* staging) {
    if (out.data != nullptr) {
        staging = out.data + t * out.stride;
        const int64_t end = out.is_slice ? width : out.stride;
        for (int64_t i = (width + 15) / 16 * 16; i < end; i += 16) store(staging + i, zero());
    }
    AbsMaxRange range;
    for (int64_t i = 0; i < width; i += 16) {
        const F32x16 y = value(i);
        if (staging != nullptr) store(staging + i, y);
        range.add(y);
    }
    if (rows.data == nullptr) return;
    if (staging == nullptr) return quantize_row(value, width, range.absmax(), rows, t);
    quantize_row([staging](int64_t i) { return load(staging + i); }, width, range.absmax(), rows, t);
}

// Columns i to i + 15 of x, with zeros from the width on.
inline F32x16 mask_tail(F32x16 x, int64_t i, int32_t width) {
    return width - i < 16 ? blend_first(static_cast<int>(width - i), x, zero()) : x;
}

}  // namespace hasten::HASTEN_ISA
