// Packed matrices: geometry, memory, and the work partition of their products.
#pragma once

#include "arena.h"
#include "kernels.h"

namespace hasten {

int64_t round_up(int64_t value, int64_t unit);

// Bytes between rows of activations: an odd number of 64-byte cache lines. Rows a multiple of a page apart would compete for the
// same sets of the first-level cache.
int64_t row_bytes(int64_t width_bytes);

// Elements between rows of bf16 activations.
int64_t bf16_stride(int64_t width);

// Bytes between rows of activations in 16 bits.
int64_t int16_stride(int64_t width);
inline int64_t int16_blocks(int64_t width) { return (width + kInt16BlockInputs - 1) / kInt16BlockInputs; }

struct MatrixShape {
    Dtype dtype;
    int32_t out_features, in_features;
    Groups groups = {};  // of types in groups
};

// Sets the geometry of a matrix and allocates its memory. Returns false when out of memory.
bool allocate_matrix(Arena& arena, const MatrixShape& shape, Matrix& matrix);

// Returns whether an outlier list of the panels of these rows overflowed.
bool outliers_overflow(const Matrix& matrix, int32_t row, int32_t rows);

// Work partition of one product: an item is a run of panels times a run of rows. The first num_large_items runs of panels are
// longer.
struct LinearPartition {
    int32_t panels, rows;  // of the whole product (gated: panels of one half)
    int32_t panels_per_item, rows_per_item;
    int32_t num_large_items, large_item_panels;

    int32_t panel_begin(int32_t item) const {
        const int32_t num_large = item < num_large_items ? item : num_large_items;
        const int32_t panel = num_large * large_item_panels + (item - num_large) * panels_per_item;
        return panel < panels ? panel : panels;
    }
    int32_t panel_items() const {
        return num_large_items + (panels - num_large_items * large_item_panels + panels_per_item - 1) / panels_per_item;
    }
    int32_t row_items() const { return (rows + rows_per_item - 1) / rows_per_item; }
    int64_t count() const { return int64_t{panel_items()} * row_items(); }
};
LinearPartition partition_linear(const Kernels& kernels, const LinearTask& task, int threads);

// Runs one item of `full`, whose panel range is ignored.
void run_linear_item(const Kernels& kernels, const LinearTask& full, const LinearPartition& partition, int64_t item, void* scratch);

}  // namespace hasten
