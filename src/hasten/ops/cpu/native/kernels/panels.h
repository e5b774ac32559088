// How a matrix product walks over panels and rows, shared by all its forms.
#pragma once

#include <cassert>
#include "../simd/count.h"
#include "../simd/prefetch.h"

#include "../kernels.h"

namespace hasten::HASTEN_ISA {

// The block of results held in registers: kTilePanels vectors of weights meet kTileRows broadcast activations. Tall, as the
// rows come from the first cache while weights come from the second, 64 bytes for every kTileRows products.
constexpr int kTilePanels = kVectorRegisters == 32 ? 2 : 1;
constexpr int kTileRows = kVectorRegisters == 32 ? 14 : 6;
constexpr int panels_for(int rows) { return rows <= 2 ? 2 : kTilePanels; }  // one or two rows leave registers for two panels
constexpr int64_t kNearBytes = 2048;                                        // how far software prefetches run before the loads
constexpr int64_t kFarBytes = 8192;

// Panels that are worked on together. Gated: the first half of them from the first half of the matrix, and their partners.
struct PanelSet {
    int32_t panels[4];
    int count;
    int64_t next_bytes;  // from each panel to its successor in the next set

    const uint8_t* data(const Matrix& matrix, int i) const { return matrix.data + panels[i] * matrix.panel_bytes; }
};

inline PanelSet panel_set(const LinearTask& task, int32_t panel, int count) {
    PanelSet set{};
    set.count = count;
    const int step = task.gated ? count / 2 : count;
    set.next_bytes = step * task.matrix->panel_bytes;
    for (int i = 0; i < count; ++i) set.panels[i] = i < step ? panel + i : panel + i - step + task.matrix->panels / 2;
    return set;
}

// Calls body(set) for all panels of the task, `widest` (1, 2 or 4) at a time and fewer at the end. Gated: at least 2.
template <class Body>
[[gnu::always_inline]] inline void for_each_set(const LinearTask& task, int widest, Body body) {
    int32_t panel = task.panel_begin;
    if (task.gated && widest < 2) widest = 2;
    for (int count = widest; count >= (task.gated ? 2 : 1); count /= 2) {
        const int step = task.gated ? count / 2 : count;
        for (; panel + step <= task.panel_end; panel += step) body(panel_set(task, panel, count));
    }
}

// Rows in blocks of at most `most`, their sizes as even as can be.
template <class Body>
[[gnu::always_inline]] inline void for_each_row_block(int32_t rows, int32_t most, Body body) {
    const int32_t blocks = (rows + most - 1) / most;
    for (int32_t i = 0, row = 0; i < blocks; ++i) {
        const int32_t size = rows / blocks + (i < rows % blocks ? 1 : 0);
        body(row, size);
        row += size;
    }
}

// body(Count<n>) for the n in [1, Most] that is known only at run time.
template <int Most, class Body>
[[gnu::always_inline]] inline void with_count(int n, Body body) {
    if constexpr (Most > 1) {
        if (n < Most) return with_count<Most - 1>(n, body);
    }
    assert(n == Most);
    body(Count<Most>{});
}

// Software prefetch along panels of `lines` lines: the same panel further on, near its end the next one. Twice, as one alone
// leaves a sixth of the memory's speed unused: far ahead into the second cache, then near into the first.
struct Ahead {
    struct Reach {
        int64_t turn, within, beyond;  // lines below `turn` prefetch at +within bytes, the others at +beyond

        Reach(int64_t bytes, int64_t lines, int64_t line_bytes, int64_t next_bytes) {
            const int64_t distance = bytes / line_bytes < lines ? bytes / line_bytes : lines;
            turn = lines - distance;
            within = distance * line_bytes;
            beyond = next_bytes - turn * line_bytes;
        }
        int64_t offset(int64_t line) const { return line < turn ? within : beyond; }
    };
    Reach near, far;
    int64_t line_bytes;

    Ahead(int64_t lines, int64_t bytes, int64_t next_bytes)
        : near(kNearBytes, lines, bytes, next_bytes), far(kFarBytes, lines, bytes, next_bytes), line_bytes(bytes) {}

    // For bytes [from, from + Bytes) of a line.
    template <bool Far, int Bytes = 64, int P>
    [[gnu::always_inline]] void fetch(const uint8_t* const (&panels)[P], int64_t line, int64_t from = 0) const {
        const int64_t begin = line * line_bytes + from;
        const int64_t at = begin + near.offset(line), far_at = begin + far.offset(line);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int byte = 0; byte < Bytes; byte += 64) {
                prefetch(panels[p] + at + byte);
                if constexpr (Far) prefetch_far(panels[p] + far_at + byte);
            }
        }
    }
};

// R rows of activations side by side, read at one column that moves on. Five rows share a pointer, so that 14 rows and two
// panels need few enough registers; the compiler is kept from making a pointer for every row.
template <int R>
struct RowCursor {
    static constexpr int kBases = (R + 4) / 5;
    const char* bases[kBases];
    int64_t stride, triple;  // bytes

    RowCursor(const void* first, int64_t stride_bytes) : stride(stride_bytes), triple(3 * stride_bytes) {
        asm("" : "+r"(triple));
        for (int i = 0; i < kBases; ++i) bases[i] = static_cast<const char*>(first) + 5 * i * stride_bytes;
    }
    [[gnu::always_inline]] const char* at(int row) const {
        const char* base = bases[row / 5];
        switch (row % 5) {
            case 0:
                return base;
            case 1:
                return base + stride;
            case 2:
                return base + 2 * stride;
            case 3:
                return base + triple;
            default:
                return base + 4 * stride;
        }
    }
    [[gnu::always_inline]] void advance(int64_t bytes) {
#pragma GCC unroll 4
        for (int i = 0; i < kBases; ++i) {
            bases[i] += bytes;
            asm("" : "+r"(bases[i]));
        }
    }
};

}  // namespace hasten::HASTEN_ISA
