// Packed matrices: their sizes, their memory, and the cutting of their products into items for the threads.
#pragma once

#include "arena.h"
#include "kernels.h"

namespace hasten {

int64_t round_up(int64_t value, int64_t unit);

// Bytes from one row of activations to the next: whole 64-byte lines, an odd number of them, as rows that are multiples of a page
// apart would all compete for the same few lines of the first-level cache.
int64_t row_bytes(int64_t width_bytes);

// Elements from one row of bf16 activations to the next.
int64_t narrow_stride(int64_t width);

// Geometry and memory of a matrix. False when memory is refused.
bool make_matrix(Arena& arena, Dtype dtype, int32_t out_features, int32_t in_features, Matrix& matrix);

// Whether a list of exceptions of these rows' panels was too short.
bool exceptions_lost(const Matrix& matrix, int32_t row, int32_t rows);

// How one product is shared: each item is a run of panels for a run of rows. The first runs of panels may be longer.
struct LinearItems {
    int32_t panels, rows;  // of the whole product (gated: panels of one half)
    int32_t panels_each, rows_each;
    int32_t num_large, panels_large;

    int32_t begin(int32_t across) const {
        const int32_t large = across < num_large ? across : num_large;
        const int32_t panel = large * panels_large + (across - large) * panels_each;
        return panel < panels ? panel : panels;
    }
    int32_t across() const { return num_large + (panels - num_large * panels_large + panels_each - 1) / panels_each; }
    int32_t down() const { return (rows + rows_each - 1) / rows_each; }
    int64_t count() const { return int64_t{across()} * down(); }
};
LinearItems cut(const Kernels& kernels, const LinearTask& task, int threads);

// Runs one item of `whole` (whose panel range is ignored).
void run_item(const Kernels& kernels, const LinearTask& whole, const LinearItems& items, int64_t item, void* scratch);

}  // namespace hasten
