// AVX-512 kernels, and matrix products of many rows and attention of many queries in AMX tiles (int8, bf16).
#define HASTEN_ISA amx
#include "simd/avx512.h"

#include "kernels/table.h"
#include "kernels/attention_amx.h"
#include "kernels/linear_amx.h"

namespace hasten {

const Kernels* amx_kernels() {
    static const Kernels table = [] {
        Kernels with_tiles = amx::make_table("amx");
        with_tiles.linear = amx::linear_tiles;
        with_tiles.item_panels = 32, with_tiles.item_rows = 512;
        with_tiles.narrow = amx::narrow;
        with_tiles.attend = amx::attend_in_tiles;
        return with_tiles;
    }();
    return &table;
}

}  // namespace hasten
