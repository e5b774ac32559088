// Dynamic quantisation of one row to int8: the last stage of the norm and activation kernels.
#pragma once

#include "../simd/math.h"

namespace hasten::HASTEN_ISA {

// What quantisation must know of a row before it can start: max|x|, and NaN if any x is a NaN or infinite.
struct RowRange {
    F16 largest_of = zero();
    F16 poison = zero();

    void add(F16 x) {
        largest_of = max(largest_of, abs(x));
        poison = fma(x, zero(), poison);
    }
    float absmax() const { return largest(largest_of) + sum(poison); }
};

// Rows below this are taken for zero: 127 / absmax must not overflow.
constexpr float kSmallestRange = 1e-30f;

struct QuantScale {
    float scale, inverse;
    explicit QuantScale(float absmax) : scale(absmax / 127.0f), inverse(127.0f / absmax) {
        if (absmax <= kSmallestRange) scale = inverse = 0.0f;
    }
};

// The sum of row t, by which products take off the zero point of their weights. Sums of four products with ones are exact.
inline void sum_row(const QuantizedRows& rows, int64_t t) {
    const int8_t* data = rows.data + t * rows.stride;
    const I16 ones = ibroadcast(0x01010101);
    I16 acc = izero();
    for (int64_t i = 0; i < rows.stride; i += 64) acc = dot4(acc, ones, iload(data + i));
    rows.sums[t] = sum(acc);
}

// Row t of `rows` = round(value / scale), ties to even, scale = absmax / 127; zeros from the width on. value(i): columns i to
// i + 15, zeros past the width. A row that holds a NaN or an infinity gets the scale NaN.
template <class Value>
inline void quantize_row(const Value& value, int32_t width, float absmax, const QuantizedRows& rows, int64_t t) {
    const QuantScale quant(absmax);
    const F16 inverse = broadcast(quant.inverse);
    int8_t* data = rows.data + t * rows.stride;
    int64_t i = 0;
    for (; i < width; i += 16) store_s8(data + i, value(i) * inverse);
    for (; i < rows.stride; i += 16) store_s8(data + i, zero());
    rows.scales[t] = quant.scale;
    if (rows.sums != nullptr) sum_row(rows, t);
}

// Writes value(i) of row t to `out` and quantised to `rows`, whichever is set. `kept` is where the row lies between the two
// passes; if null, values are computed twice.
template <class Value>
inline void write_row(const Value& value, int32_t width, const Rows& out, const QuantizedRows& rows, int64_t t, float* kept) {
    if (out.data != nullptr) {
        kept = out.data + t * out.stride;
        const int64_t end = out.part ? width : out.stride;
        for (int64_t i = (width + 15) / 16 * 16; i < end; i += 16) store(kept + i, zero());
    }
    RowRange range;
    for (int64_t i = 0; i < width; i += 16) {
        const F16 y = value(i);
        if (kept != nullptr) store(kept + i, y);
        range.add(y);
    }
    if (rows.data == nullptr) return;
    if (kept == nullptr) return quantize_row(value, width, range.absmax(), rows, t);
    quantize_row([kept](int64_t i) { return load(kept + i); }, width, range.absmax(), rows, t);
}

// Columns i to i + 15 of x, zeros from the width on.
inline F16 inside(F16 x, int64_t i, int32_t width) { return width - i < 16 ? first(static_cast<int>(width - i), x, zero()) : x; }

}  // namespace hasten::HASTEN_ISA
