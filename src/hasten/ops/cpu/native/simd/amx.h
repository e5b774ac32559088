// Tile configuration and compiler barriers, shared by the AMX kernels.
#pragma once

#include <cstdint>

#ifdef HASTEN_EMULATE_AMX
#include "amx_emulation.h"
#endif

namespace hasten::HASTEN_ISA {

constexpr int kAmxTileRows = 16;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Orders ordinary memory accesses against tile loads and stores, whose memory operands the compiler does not know.
inline void compiler_barrier() { asm volatile("" ::: "memory"); }

// Configures tiles 0 to 3 for sums of `upper` rows (0, 1) and `lower` rows (2, 3), with two vectors of 16 columns. Tiles 4 and 5
// are left operands of `depth` bytes, tiles 6 and 7 right operands.
inline void configure_tiles(int upper, int lower, int depth) {
    TileConfig shapes;
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
        shapes.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : i == 0 || i == 1 || i == 4 ? upper : lower);
    }
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

}  // namespace hasten::HASTEN_ISA
