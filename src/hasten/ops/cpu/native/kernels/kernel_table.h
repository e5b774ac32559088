// The kernel table of one instruction set, through which the program calls the kernels.
#pragma once

#include "../simd/vector_math.h"

#include "activate.h"
#include "attention.h"
#include "convert_to_int16.h"
#include "sample.h"
#include "embed.h"
#include "linear.h"
#include "norm.h"
#include "weight_packing.h"
#include "rope_and_cache.h"
#include "rotary_table.h"

namespace hasten::HASTEN_ISA {

inline Kernels make_kernel_table(const char* name) {
    // int8 rows of 4,096 inputs stay in the cache beside 128 outputs of weights.
    constexpr int32_t kItemPanels = 8, kItemRows = 384;
    return Kernels{
        name, kItemPanels, kItemRows, pack,         pack_codes,     pack_nested,    linear, convert_to_int16, nullptr,
        norm, activate,    embed,     rotary_table, rope_and_cache, plan_attention, attend, merge_splits,     sample,
    };
}

}  // namespace hasten::HASTEN_ISA
