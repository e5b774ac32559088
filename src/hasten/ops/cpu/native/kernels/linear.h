// Matrix products: selects the form by weight type, activation type and number of rows.
#pragma once

#include "linear_float.h"
#include "linear_fp8.h"
#include "linear_codes.h"
#include "linear_int4.h"

namespace hasten::HASTEN_ISA {

inline void linear(const LinearTask& task) {
    const bool quantized = task.quantized.data != nullptr;
    if (task.rows == 0) return;
    switch (task.matrix->dtype) {
        case Dtype::f32:
            return linear_float<WeightsF32>(task);
        case Dtype::bf16:
            return linear_float<WeightsBf16>(task);
        case Dtype::bf16_compressed:
            return linear_bf16_compressed(task);
        case Dtype::f16:
            return linear_float<WeightsF16>(task);
        case Dtype::int8:
            return quantized ? linear_int8(task) : linear_float<WeightsInt8>(task);
        case Dtype::int4:
            return quantized ? linear_int4(task) : linear_float<WeightsInt4>(task);
        case Dtype::codes4:
            return linear_codes<Codes4>(task);
        case Dtype::codes8:
            return linear_codes<Codes8>(task);
        case Dtype::fp8:
            return linear_fp8(task);
    }
}

}  // namespace hasten::HASTEN_ISA
