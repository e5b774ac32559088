// What the tile kernels share: the shapes of the eight tiles, and the order of memory that the intrinsics leave open.
#pragma once

#include <cstdint>

#ifdef HASTEN_EMULATE_AMX
#include "amx_emulation.h"
#endif

namespace hasten::HASTEN_ISA {

constexpr int kTileHeight = 16;  // rows of a tile

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// What was stored lies in memory before tiles are loaded, and what tiles store before it is read: the compiler does not know what
// their instructions read.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// Tiles 0 to 3: sums, of `upper` rows (0, 1) and `lower` rows (2, 3) by two columns of 16. 4, 5: their left sides, `depth` bytes
// deep. 6, 7: the right sides.
inline void shape_tiles(int upper, int lower, int depth) {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
        shapes.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : i == 0 || i == 1 || i == 4 ? upper : lower);
    }
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

}  // namespace hasten::HASTEN_ISA
