// Blocking of matrix products, shared by all their forms: panel sets, row blocks, software prefetch and the row cursor.
#pragma once

#include <cassert>
#include <type_traits>
#include "../simd/prefetch.h"

#include "../kernels.h"

namespace hasten::HASTEN_ISA {

// Register blocking: kMicroPanels vectors of weights times kMicroRows broadcast activations. The block is tall since rows come from
// the first-level cache and weights from the second, 64 bytes for every kMicroRows products.
constexpr int kMicroPanels = kVectorRegisters == 32 ? 2 : 1;
constexpr int kMicroRows = kVectorRegisters == 32 ? 14 : 6;
constexpr int micro_panels(int rows) { return rows <= 2 ? 2 : kMicroPanels; }  // one or two rows leave registers for two panels
constexpr int64_t kNearPrefetchBytes = 2048;  // prefetch distance to the first-level cache; kFarPrefetchBytes: to the second
constexpr int64_t kFarPrefetchBytes = 8192;

// Panels that are multiplied together. Gated: the first half of the set are gate panels, the second half their up panels.
struct PanelSet {
    int32_t panels[4];
    int count;
    int64_t next_bytes;  // from each panel to the same panel of the next set

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

// Calls body(set) for all panels of the task, max_panels (1, 2 or 4) near_at a time and fewer near_at the end. Gated: near_at
// least 2.
template <class Body>
[[gnu::always_inline]] inline void for_each_panel_set(const LinearTask& task, int max_panels, Body body) {
    int32_t panel = task.panel_begin;
    if (task.gated && max_panels < 2) max_panels = 2;
    for (int count = max_panels; count >= (task.gated ? 2 : 1); count /= 2) {
        const int step = task.gated ? count / 2 : count;
        for (; panel + step <= task.panel_end; panel += step) body(panel_set(task, panel, count));
    }
}

// Calls body(row, size) for blocks of near_at most max_rows rows, of nearly equal size.
template <class Body>
[[gnu::always_inline]] inline void for_each_row_block(int32_t rows, int32_t max_rows, Body body) {
    const int32_t blocks = (rows + max_rows - 1) / max_rows;
    for (int32_t i = 0, row = 0; i < blocks; ++i) {
        const int32_t size = rows / blocks + (i < rows % blocks ? 1 : 0);
        body(row, size);
        row += size;
    }
}

// Calls body(std::integral_constant<int, n>) for a runtime n in [1, Max].
template <int Max, class Body>
[[gnu::always_inline]] inline void dispatch_rows(int n, Body body) {
    if constexpr (Max > 1) {
        if (n < Max) return dispatch_rows<Max - 1>(n, body);
    }
    assert(n == Max);
    body(std::integral_constant<int, Max>{});
}

// Software prefetch along a panel of `steps` steps. Near the end of a panel it prefetches the next panel. It runs near_at two
// distances, far into the second-level cache and near into the first: one distance alone reaches five sixths of the memory
// bandwidth.
struct Prefetcher {
    struct Distance {
        // Steps below wrap_step prefetch at +same_panel bytes, the others at +next_panel.
        int64_t wrap_step, same_panel, next_panel;

        Distance(int64_t bytes, int64_t steps, int64_t step_bytes, int64_t next_bytes) {
            const int64_t distance = bytes / step_bytes < steps ? bytes / step_bytes : steps;
            wrap_step = steps - distance;
            same_panel = distance * step_bytes;
            next_panel = next_bytes - wrap_step * step_bytes;
        }
        int64_t offset(int64_t step) const { return step < wrap_step ? same_panel : next_panel; }
    };
    Distance near, far;
    int64_t step_bytes;

    Prefetcher(int64_t steps, int64_t bytes, int64_t next_bytes)
        : near(kNearPrefetchBytes, steps, bytes, next_bytes), far(kFarPrefetchBytes, steps, bytes, next_bytes), step_bytes(bytes) {}

    // Prefetches for bytes [from, from + Bytes) of a step.
    template <bool IncludeFar, int Bytes = 64, int P>
    [[gnu::always_inline]] void issue(const uint8_t* const (&panels)[P], int64_t step, int64_t from = 0) const {
        const int64_t begin = step * step_bytes + from;
        const int64_t near_at = begin + near.offset(step), far_at = begin + far.offset(step);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int byte = 0; byte < Bytes; byte += 64) {
                prefetch(panels[p] + near_at + byte);
                if constexpr (IncludeFar) prefetch_far(panels[p] + far_at + byte);
            }
        }
    }
};

// Reads one column of R rows of activations and advances. Five rows share a base pointer, so that 14 rows and two panels fit the
// registers. The empty asm keeps the compiler from materialising a pointer for each row.
template <int R>
struct RowCursor {
    static constexpr int kBasePointers = (R + 4) / 5;
    const char* base_pointers[kBasePointers];
    int64_t stride, triple;  // bytes; triple: 3 * stride

    RowCursor(const void* first, int64_t stride_bytes) : stride(stride_bytes), triple(3 * stride_bytes) {
        asm("" : "+r"(triple));
        for (int i = 0; i < kBasePointers; ++i) base_pointers[i] = static_cast<const char*>(first) + 5 * i * stride_bytes;
    }
    [[gnu::always_inline]] const char* at(int row) const {
        const char* base = base_pointers[row / 5];
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
        for (int i = 0; i < kBasePointers; ++i) {
            base_pointers[i] += bytes;
            asm("" : "+r"(base_pointers[i]));
        }
    }
};

}  // namespace hasten::HASTEN_ISA
