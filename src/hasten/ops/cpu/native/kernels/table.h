// All kernels of one instruction set, as the table that the program calls through.
#pragma once

#include "../simd/math.h"

#include "activate.h"
#include "attention.h"
#include "draw.h"
#include "embed.h"
#include "linear.h"
#include "norm.h"
#include "pack.h"
#include "prepare.h"
#include "rotary.h"

namespace hasten::HASTEN_ISA {

inline Kernels make_table(const char* name) {
    constexpr int32_t kItemPanels = 8, kItemRows = 384;  // int8 rows of 4,096 stay in the cache beside 128 outputs of weights
    return Kernels{
        name,  kItemPanels, kItemRows, pack,           linear, nullptr, norm, activate,
        embed, rotary,      prepare,   plan_attention, attend, merge,   draw,
    };
}

}  // namespace hasten::HASTEN_ISA
