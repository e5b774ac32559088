// The kernels for AMX: AVX-512, with products of many rows and attention of many queries in AMX tiles (int8, bf16).
#define HASTEN_ISA amx
#include "simd/avx512.h"

#include "kernels/kernel_table.h"
#include "kernels/attention_amx.h"
#include "kernels/linear_amx.h"

namespace hasten {

const Kernels* amx_kernels() {
    static const Kernels table = [] {
        Kernels kernels = amx::make_kernel_table("amx");
        kernels.linear = amx::linear_amx;
        kernels.item_panels = 32, kernels.item_rows = 512;
        kernels.convert_to_bf16 = amx::convert_to_bf16;
        kernels.attend = amx::attend_amx;
        return kernels;
    }();
    return &table;
}

}  // namespace hasten
