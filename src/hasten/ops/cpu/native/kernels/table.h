// All kernels of one instruction set, as the table that the program calls through.
#pragma once

#include "../simd/math.h"

#include "activate.h"
#include "attention.h"
#include "embed.h"
#include "linear.h"
#include "norm.h"
#include "pack.h"
#include "prepare.h"
#include "rotary.h"
#include "select.h"

namespace hasten::HASTEN_ISA {

inline Kernels make_table(const char* name) {
    return Kernels{
        name,
        pack,
        linear,
        norm,
        activate,
        embed,
        rotary,
        prepare,
        attention_items,
        attend,
        merge_items,
        merge,
        attention_partials,
        argmax,
        top_k,
        log_sum_exp,
    };
}

}  // namespace hasten::HASTEN_ISA
