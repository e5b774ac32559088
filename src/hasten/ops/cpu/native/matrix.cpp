#include "matrix.h"

#include <algorithm>

namespace hasten {

namespace {

constexpr int32_t kMaxMemoryBoundRows = 24;  // up to here a product is bound by reading its weights, and items have a size in bytes
// Long runs of weights stream best, at 34 in place of 29 GB/s: prefetches at the end of a thread's run belong to another thread.
// The last quarter is divided into short runs to balance the threads.
constexpr int64_t kLargeItemBytes = 1 << 20;
constexpr int64_t kStreamItemBytes = 128 << 10;

int64_t panel_bytes(Dtype dtype, int64_t padded_in) {
    switch (dtype) {
        case Dtype::f32:
            return padded_in * 64;
        case Dtype::bf16:
        case Dtype::f16:
            return padded_in * 32;
        case Dtype::bf16_compressed:
            return padded_in * 24;
        case Dtype::int8:
            return padded_in * 16;
        default:
            return padded_in * 9;
    }
}

int64_t input_alignment(Dtype dtype) {
    switch (dtype) {
        case Dtype::f32:
        case Dtype::f16:
            return 1;
        case Dtype::bf16:
        case Dtype::bf16_compressed:
            return 32;
        default:
            return kInt8RowPadding;
    }
}

// Of normally distributed weights one in 2,600 to 5,100 is an outlier. With more than one in 256, bf16 itself is as small.
bool allocate_outliers(Arena& arena, Matrix& matrix) {
    const auto panels = static_cast<size_t>(matrix.panels);
    matrix.max_outliers = std::max(16, matrix.padded_in * kLanes / 256);
    matrix.exponent_bases = static_cast<uint8_t*>(arena.allocate(panels * 64));
    matrix.outliers = static_cast<Outlier*>(arena.allocate(panels * static_cast<size_t>(matrix.max_outliers) * sizeof(Outlier)));
    matrix.num_outliers = static_cast<int32_t*>(arena.allocate(panels * sizeof(int32_t)));
    return matrix.exponent_bases != nullptr && matrix.outliers != nullptr && matrix.num_outliers != nullptr;
}

}  // namespace

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t row_bytes(int64_t width_bytes) {
    const int64_t lines = round_up(width_bytes, 64) / 64;
    return (lines | 1) * 64;
}

int64_t bf16_stride(int64_t width) {
    return row_bytes(round_up(width, 32) * int64_t{sizeof(uint16_t)}) / int64_t{sizeof(uint16_t)};
}

int64_t int16_stride(int64_t width) { return row_bytes(2 * round_up(width, kInt16BlockInputs)); }

bool allocate_matrix(Arena& arena, const MatrixShape& shape, Matrix& matrix) {
    const Dtype dtype = shape.dtype;
    matrix = {};
    matrix.dtype = dtype;
    matrix.out_features = shape.out_features;
    matrix.in_features = shape.in_features;
    matrix.groups = shape.groups;
    const int64_t alignment = is_grouped(dtype) ? shape.groups.block_inputs() : input_alignment(dtype);
    matrix.padded_in = static_cast<int32_t>(round_up(shape.in_features, alignment));
    matrix.panels = static_cast<int32_t>(round_up(shape.out_features, kLanes) / kLanes);
    matrix.panel_bytes =
        is_grouped(dtype) ? num_blocks(matrix) * block_bytes(dtype, shape.groups) : panel_bytes(dtype, matrix.padded_in);
    const int64_t panels = matrix.panels;
    matrix.data = static_cast<uint8_t*>(arena.allocate(static_cast<size_t>(panels * matrix.panel_bytes)));
    if (matrix.data == nullptr) return false;
    if (dtype == Dtype::int8 || dtype == Dtype::int4) {
        matrix.scales = static_cast<float*>(arena.allocate(static_cast<size_t>(panels) * kLanes * sizeof(float)));
        return matrix.scales != nullptr;
    }
    if (dtype == Dtype::bf16_compressed) return allocate_outliers(arena, matrix);
    return true;
}

bool outliers_overflow(const Matrix& matrix, int32_t row, int32_t rows) {
    if (matrix.dtype != Dtype::bf16_compressed) return false;
    const int32_t first = row / kLanes, last = (row + rows + kLanes - 1) / kLanes;
    return std::any_of(matrix.num_outliers + first, matrix.num_outliers + last,
                       [&](int32_t count) { return count > matrix.max_outliers; });
}

LinearPartition partition_linear(const Kernels& kernels, const LinearTask& task, int threads) {
    LinearPartition partition{};
    partition.panels = task.gated ? task.matrix->panels / 2 : task.matrix->panels;
    partition.rows = task.rows;
    const int32_t panels_per_share = (partition.panels + 2 * threads - 1) / (2 * threads);
    if (task.rows <= kMaxMemoryBoundRows) {
        const auto stream_panels = static_cast<int32_t>(std::max<int64_t>(4, kStreamItemBytes / task.matrix->panel_bytes));
        partition.panels_per_item = std::max(1, std::min(stream_panels, panels_per_share));
        partition.rows_per_item = std::max(1, task.rows);
        const int32_t panels_per_thread = partition.panels * 3 / 4 / threads;  // in long runs
        const int64_t items_per_thread = (panels_per_thread * task.matrix->panel_bytes + kLargeItemBytes - 1) / kLargeItemBytes;
        if (items_per_thread == 0 || panels_per_thread / items_per_thread <= partition.panels_per_item) return partition;
        partition.large_item_panels = static_cast<int32_t>(panels_per_thread / items_per_thread);
        partition.num_large_items = static_cast<int32_t>(items_per_thread) * threads;
        return partition;
    }
    partition.panels_per_item = std::max(1, std::min(kernels.item_panels, panels_per_share));
    partition.rows_per_item = std::min(task.rows, kernels.item_rows);
    return partition;
}

void run_linear_item(const Kernels& kernels, const LinearTask& full, const LinearPartition& partition, int64_t item,
                     void* scratch) {
    const auto row_item = static_cast<int32_t>(item / partition.panel_items());
    const auto panel_item = static_cast<int32_t>(item % partition.panel_items());
    LinearTask task = full;
    const int64_t row = int64_t{row_item} * partition.rows_per_item;
    task.rows = std::min<int32_t>(partition.rows_per_item, static_cast<int32_t>(full.rows - row));
    task.panel_begin = partition.panel_begin(panel_item);
    task.panel_end = partition.panel_begin(panel_item + 1);
    if (task.x.data != nullptr) task.x.data += row * task.x.stride;
    if (task.x_bf16.data != nullptr) task.x_bf16.data += row * task.x_bf16.stride;
    if (task.x_int16.data != nullptr) task.x_int16 = task.x_int16.from(row);
    if (task.quantized.data != nullptr) {
        task.quantized.data += row * task.quantized.stride;
        task.quantized.scales += row;
        task.quantized.sums += row;
    }
    task.out.data += row * task.out.stride;
    task.scratch = scratch;
    kernels.linear(task);
}

}  // namespace hasten
