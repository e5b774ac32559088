#include "matrix.h"

#include <algorithm>

namespace hasten {

namespace {

constexpr int32_t kStreamedRows = 24;  // up to here a product waits for its weights, and items are cut by bytes
// Long runs of weights stream best, 34 in place of 29 GB/s: where the threads' runs meet, what one has asked for ahead is the
// other's to read. The last quarter is cut in short ones, so that nobody waits long enough to fall asleep.
constexpr int64_t kLargeBytes = 1 << 20;
constexpr int64_t kStreamBytes = 128 << 10;

int64_t line_bytes(Dtype dtype, int64_t padded_in) {
    switch (dtype) {
        case Dtype::f32:
            return padded_in * 64;
        case Dtype::bf16:
        case Dtype::f16:
            return padded_in * 32;
        case Dtype::bf16_coded:
            return padded_in * 24;
        case Dtype::int8:
            return padded_in * 16;
        default:
            return padded_in * 9;
    }
}

int64_t padding(Dtype dtype) {
    switch (dtype) {
        case Dtype::f32:
        case Dtype::f16:
            return 1;
        case Dtype::bf16:
        case Dtype::bf16_coded:
            return 32;
        default:
            return kQuantPad;
    }
}

// Of normally distributed weights one in 2,600 to 5,100 is an exception; with more than one in 256 bf16 itself is as good.
bool make_exceptions(Arena& arena, Matrix& matrix) {
    const auto panels = static_cast<size_t>(matrix.panels);
    matrix.max_exceptions = std::max(16, matrix.padded_in * kLanes / 256);
    matrix.bases = static_cast<uint8_t*>(arena.take(panels * 64));
    matrix.exceptions =
        static_cast<Exception*>(arena.take(panels * static_cast<size_t>(matrix.max_exceptions) * sizeof(Exception)));
    matrix.num_exceptions = static_cast<int32_t*>(arena.take(panels * sizeof(int32_t)));
    return matrix.bases != nullptr && matrix.exceptions != nullptr && matrix.num_exceptions != nullptr;
}

}  // namespace

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t row_bytes(int64_t width_bytes) {
    const int64_t lines = round_up(width_bytes, 64) / 64;
    return (lines | 1) * 64;
}

int64_t narrow_stride(int64_t width) {
    return row_bytes(round_up(width, 32) * int64_t{sizeof(uint16_t)}) / int64_t{sizeof(uint16_t)};
}

bool make_matrix(Arena& arena, Dtype dtype, int32_t out_features, int32_t in_features, Matrix& matrix) {
    matrix = {};
    matrix.dtype = dtype;
    matrix.out_features = out_features;
    matrix.in_features = in_features;
    matrix.padded_in = static_cast<int32_t>(round_up(in_features, padding(dtype)));
    matrix.panels = static_cast<int32_t>(round_up(out_features, kLanes) / kLanes);
    matrix.panel_bytes = line_bytes(dtype, matrix.padded_in);
    const int64_t panels = matrix.panels;
    matrix.data = static_cast<uint8_t*>(arena.take(static_cast<size_t>(panels * matrix.panel_bytes)));
    if (matrix.data == nullptr) return false;
    if (dtype == Dtype::int8 || dtype == Dtype::int4) {
        matrix.scales = static_cast<float*>(arena.take(static_cast<size_t>(panels) * kLanes * sizeof(float)));
        return matrix.scales != nullptr;
    }
    if (dtype == Dtype::bf16_coded) return make_exceptions(arena, matrix);
    return true;
}

bool exceptions_lost(const Matrix& matrix, int32_t row, int32_t rows) {
    if (matrix.dtype != Dtype::bf16_coded) return false;
    const int32_t first = row / kLanes, last = (row + rows + kLanes - 1) / kLanes;
    return std::any_of(matrix.num_exceptions + first, matrix.num_exceptions + last,
                       [&](int32_t count) { return count > matrix.max_exceptions; });
}

LinearItems cut(const Kernels& kernels, const LinearTask& task, int threads) {
    LinearItems items{};
    items.panels = task.gated ? task.matrix->panels / 2 : task.matrix->panels;
    items.rows = task.rows;
    const int32_t share = (items.panels + 2 * threads - 1) / (2 * threads);
    if (task.rows <= kStreamedRows) {
        const auto streamed = static_cast<int32_t>(std::max<int64_t>(4, kStreamBytes / task.matrix->panel_bytes));
        items.panels_each = std::max(1, std::min(streamed, share));
        items.rows_each = std::max(1, task.rows);
        const int32_t own = items.panels * 3 / 4 / threads;  // of one thread, in long runs
        const int64_t runs = (own * task.matrix->panel_bytes + kLargeBytes - 1) / kLargeBytes;
        if (runs == 0 || own / runs <= items.panels_each) return items;
        items.panels_large = static_cast<int32_t>(own / runs);
        items.num_large = static_cast<int32_t>(runs) * threads;
        return items;
    }
    items.panels_each = std::max(1, std::min(kernels.item_panels, share));
    items.rows_each = std::min(task.rows, kernels.item_rows);
    return items;
}

void run_item(const Kernels& kernels, const LinearTask& whole, const LinearItems& items, int64_t item, void* scratch) {
    const auto down = static_cast<int32_t>(item / items.across());
    const auto across = static_cast<int32_t>(item % items.across());
    LinearTask task = whole;
    const int64_t row = int64_t{down} * items.rows_each;
    task.rows = std::min<int32_t>(items.rows_each, static_cast<int32_t>(whole.rows - row));
    task.panel_begin = items.begin(across);
    task.panel_end = items.begin(across + 1);
    if (task.x.data != nullptr) task.x.data += row * task.x.stride;
    if (task.narrow.data != nullptr) task.narrow.data += row * task.narrow.stride;
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
