// The AMX instructions of linear_amx.h and attention_amx.h in plain C++, as defined by the Software Developer's Manual, to test
// tile kernels on processors without AMX. Macros replace the intrinsics, so include this after immintrin.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace hasten::amx_emulation {

struct Tile {
    int rows, row_bytes;
    uint8_t data[16][64];
};
inline thread_local Tile tiles[8];

inline void configure(const void* config) {
    const uint8_t* bytes = static_cast<const uint8_t*>(config);
    for (int i = 0; i < 8; ++i) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
        tiles[i] = {};
        tiles[i].row_bytes = row_bytes;
        tiles[i].rows = bytes[48 + i];
    }
}

inline void release() {
    for (Tile& tile : tiles) tile = {};
}

inline void clear(Tile& tile) { memset(tile.data, 0, sizeof tile.data); }

inline void load(Tile& tile, const void* base, int64_t stride) {
    clear(tile);
    for (int r = 0; r < tile.rows; ++r) {
        memcpy(tile.data[r], static_cast<const uint8_t*>(base) + r * stride, static_cast<size_t>(tile.row_bytes));
    }
}

inline void save(const Tile& tile, void* base, int64_t stride) {
    for (int r = 0; r < tile.rows; ++r) {
        memcpy(static_cast<uint8_t*>(base) + r * stride, tile.data[r], static_cast<size_t>(tile.row_bytes));
    }
}

// An instruction whose operand shapes do not match faults.
inline void check_shapes(const Tile& c, const Tile& a, const Tile& b) {
    if (c.rows == 0 || a.rows != c.rows || b.row_bytes != c.row_bytes || a.row_bytes != 4 * b.rows) __builtin_trap();
}

// c += a (bytes of type A) * b (bytes of type B), four at a time; sums wrap.
template <class A, class B>
inline void dot_bytes(Tile& c, const Tile& a, const Tile& b) {
    check_shapes(c, a, b);
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            uint32_t sum;
            memcpy(&sum, c.data[m] + 4 * n, 4);
            for (int k = 0; k < a.row_bytes; ++k) {
                const int32_t right = static_cast<B>(b.data[k / 4][4 * n + k % 4]);
                sum += static_cast<uint32_t>(static_cast<A>(a.data[m][k]) * right);
            }
            memcpy(c.data[m] + 4 * n, &sum, 4);
        }
    }
}

// Subnormal inputs and outputs are flushed to zero.
inline float flush(float value) { return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0.0f, value) : value; }

inline float bf16_at(const uint8_t* p) {
    uint16_t half;
    memcpy(&half, p, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return flush(value);
}

// c += a * b in bf16: even and odd inputs form two chains of fused multiply-adds from zero, which are added to each other and then
// to c.
inline void dot_bf16(Tile& c, const Tile& a, const Tile& b) {
    check_shapes(c, a, b);
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.row_bytes / 4; ++n) {
            float chains[2] = {0.0f, 0.0f};
            for (int k = 0; k < a.row_bytes / 4; ++k) {
                for (int i = 0; i < 2; ++i) {
                    const float left = bf16_at(a.data[m] + 4 * k + 2 * i), right = bf16_at(b.data[k] + 4 * n + 2 * i);
                    chains[i] = flush(__builtin_fmaf(left, right, chains[i]));
                }
            }
            float sum;
            memcpy(&sum, c.data[m] + 4 * n, 4);
            sum = flush(flush(sum) + flush(chains[0] + chains[1]));
            memcpy(c.data[m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace hasten::amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define HASTEN_TILE(t) hasten::amx_emulation::tiles[t]
#define _tile_loadconfig(config) hasten::amx_emulation::configure(config)
#define _tile_release() hasten::amx_emulation::release()
#define _tile_zero(t) hasten::amx_emulation::clear(HASTEN_TILE(t))
#define _tile_loadd(t, base, stride) hasten::amx_emulation::load(HASTEN_TILE(t), base, stride)
#define _tile_stream_loadd(t, base, stride) _tile_loadd(t, base, stride)
#define _tile_stored(t, base, stride) hasten::amx_emulation::save(HASTEN_TILE(t), base, stride)
#define _tile_dpbsud(c, a, b) hasten::amx_emulation::dot_bytes<int8_t, uint8_t>(HASTEN_TILE(c), HASTEN_TILE(a), HASTEN_TILE(b))
#define _tile_dpbusd(c, a, b) hasten::amx_emulation::dot_bytes<uint8_t, int8_t>(HASTEN_TILE(c), HASTEN_TILE(a), HASTEN_TILE(b))
#define _tile_dpbf16ps(c, a, b) hasten::amx_emulation::dot_bf16(HASTEN_TILE(c), HASTEN_TILE(a), HASTEN_TILE(b))
