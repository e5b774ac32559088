// The C interface to weights and their matrices.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "handles.h"

using namespace hasten;

namespace {

// Rows are shared in items that end at multiples of 16 of them: no two threads write into one panel.
constexpr int32_t kPackRows = 64;

void pack_rows(hasten_cpu* cpu, const PackTask& whole) {
    const int32_t first = whole.row / kPackRows, last = (whole.row + whole.rows + kPackRows - 1) / kPackRows;
    const int64_t row_bytes = whole.row_stride * (whole.source_dtype == Dtype::f32 ? 4 : 2);
    share(cpu, last - first, [&](int64_t item, int) {
        PackTask task = whole;
        task.row = std::max(whole.row, (first + static_cast<int32_t>(item)) * kPackRows);
        task.rows = std::min(whole.row + whole.rows, (first + static_cast<int32_t>(item) + 1) * kPackRows) - task.row;
        task.source = static_cast<const char*>(whole.source) + (task.row - whole.row) * row_bytes;
        cpu->kernels.pack(task);
    });
}

// A matrix with too many exceptions goes on as plain bf16, with the rows that it holds. False when memory is refused.
bool uncode(hasten_cpu* cpu, hasten_matrix& matrix) {
    const Matrix coded = matrix.matrix;
    if (!make_matrix(*matrix.arena, Dtype::bf16, coded.out_features, coded.in_features, matrix.matrix)) return false;
    const int64_t stride = round_up(coded.in_features, kLanes);
    share(cpu, (coded.out_features + kPackRows - 1) / kPackRows, [&](int64_t item, int) {
        std::vector<float> row(static_cast<size_t>(stride));
        const auto begin = static_cast<int32_t>(item) * kPackRows;
        for (int32_t i = begin; i < std::min(begin + kPackRows, coded.out_features); ++i) {
            cpu->kernels.embed({&coded, &i, false, {row.data(), stride}, 0, 1});
            cpu->kernels.pack({&matrix.matrix, row.data(), Dtype::f32, stride, 1, i, 1});
        }
    });
    matrix.arena->forget(coded.data, static_cast<size_t>(coded.panels * coded.panel_bytes));
    return true;
}

// Padded copies of contiguous rows, as the kernels want them, and their quantised form. Padding is zero.
struct EagerRows {
    Rows rows{};
    QuantizedRows quantized{};
    NarrowRows narrow{};

    EagerRows(EagerMemory& memory, const Matrix& matrix, const float* x, int32_t count, bool quantize, bool narrows) {
        const int64_t width = matrix.in_features;
        rows.stride = row_bytes(width * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
        rows.data = memory.take<float>(count * rows.stride);
        for (int32_t t = 0; t < count; ++t) {
            float* row = rows.data + t * rows.stride;
            std::memcpy(row, x + t * width, static_cast<size_t>(width) * sizeof(float));
            std::fill(row + width, row + rows.stride, 0.0f);
        }
        if (narrows) {
            narrow.stride = narrow_stride(width);
            narrow.data = memory.take<uint16_t>(count * narrow.stride);
        }
        if (!quantize) return;
        quantized.stride = row_bytes(round_up(width, kQuantPad));
        quantized.data = memory.take<int8_t>(count * quantized.stride);
        quantized.scales = memory.take<float>(count);
        quantized.sums = memory.take<int32_t>(count);
        std::memset(quantized.data, 0, static_cast<size_t>(count * quantized.stride));
        std::memset(quantized.sums, 0, static_cast<size_t>(count) * sizeof(int32_t));
    }

    // Bytes that `count` rows take, and what they are rounded up by.
    static int64_t bytes(const Matrix& matrix, int32_t count) {
        const int64_t width = round_up(matrix.in_features, kQuantPad) + 256;
        return count * width * int64_t{2 * sizeof(float) + 1} + 1024;
    }
};

}  // namespace

extern "C" {

hasten_weights* hasten_weights_new(void) { return new (std::nothrow) hasten_weights(); }

void hasten_weights_free(hasten_weights* weights) { delete weights; }

int64_t hasten_weights_bytes(const hasten_weights* weights) { return static_cast<int64_t>(weights->arena.bytes()); }

hasten_matrix* hasten_matrix_new(hasten_weights* weights, int32_t dtype, int32_t out_features, int32_t in_features) {
    auto matrix = std::make_unique<hasten_matrix>();
    matrix->arena = &weights->arena;
    const auto given = static_cast<Dtype>(dtype);
    const Dtype kept = given == Dtype::bf16 ? Dtype::bf16_coded : given;
    if (!make_matrix(weights->arena, kept, out_features, in_features, matrix->matrix)) return nullptr;
    weights->matrices.push_back(std::move(matrix));
    return weights->matrices.back().get();
}

int32_t hasten_matrix_pack(hasten_cpu* cpu, hasten_matrix* matrix, const void* source, int32_t source_dtype, int64_t row_stride,
                           int64_t column_stride, int32_t row, int32_t rows) {
    PackTask task{&matrix->matrix, source, static_cast<Dtype>(source_dtype), row_stride, column_stride, row, rows};
    pack_rows(cpu, task);
    if (!exceptions_lost(matrix->matrix, row, rows)) return 0;
    if (!uncode(cpu, *matrix)) return 1;
    pack_rows(cpu, task);
    return 0;
}

int32_t hasten_matrix_multiply(hasten_cpu* cpu, const hasten_matrix* matrix, const float* x, int32_t rows, const float* bias,
                               int32_t int8_activations, float* out) {
    const Matrix& m = matrix->matrix;
    const int64_t stride = int64_t{m.panels} * kLanes;
    const std::lock_guard<std::mutex> lock(cpu->one_product);
    if (!cpu->eager.begin(EagerRows::bytes(m, rows) + (rows + 1) * stride * int64_t{sizeof(float)})) return 1;
    const bool narrow = cpu->kernels.narrow != nullptr && is_bf16(m.dtype) && rows > kVectorRows;
    const EagerRows given(cpu->eager, m, x, rows, int8_activations != 0, narrow);
    auto* padded = cpu->eager.take<float>((rows + 1) * stride);
    float* padded_bias = padded + rows * stride;
    std::fill(padded_bias, padded_bias + stride, 0.0f);
    if (bias != nullptr) std::memcpy(padded_bias, bias, static_cast<size_t>(m.out_features) * sizeof(float));
    if (int8_activations != 0) {
        NormTask quantize{};
        quantize.x = given.rows;
        quantize.width = m.in_features;
        quantize.quantized = given.quantized;
        quantize.end = rows;
        cpu->kernels.norm(quantize);
    }
    LinearTask task{};
    task.matrix = &m;
    task.rows = rows;
    task.x = given.rows;
    task.quantized = given.quantized;
    task.narrow = given.narrow;
    if (task.narrow.data != nullptr) cpu->kernels.narrow({given.rows, m.in_features, given.narrow, 0, rows});
    task.bias = bias == nullptr ? nullptr : padded_bias;
    task.out = {padded, stride};
    const LinearItems items = cut(cpu->kernels, task, cpu->threads.threads());
    share(cpu, items.count(),
          [&](int64_t item, int thread) { run_item(cpu->kernels, task, items, item, cpu->scratch[static_cast<size_t>(thread)]); });
    for (int32_t t = 0; t < rows; ++t) {
        std::memcpy(out + int64_t{t} * m.out_features, padded + t * stride, static_cast<size_t>(m.out_features) * sizeof(float));
    }
    cpu->eager.end();
    return 0;
}

void hasten_matrix_lookup(hasten_cpu* cpu, const hasten_matrix* matrix, const int32_t* ids, int32_t count, float* out) {
    // The kernel writes zeros up to the stride, so rows that are not whole vectors go through a padded one.
    const int32_t width = matrix->matrix.in_features;
    const int64_t stride = round_up(width, kLanes);
    std::vector<float> row(static_cast<size_t>(stride));
    for (int32_t t = 0; t < count; ++t) {
        cpu->kernels.embed({&matrix->matrix, ids + t, false, {row.data(), stride}, 0, 1});
        std::memcpy(out + int64_t{t} * width, row.data(), static_cast<size_t>(width) * sizeof(float));
    }
}

}  // extern "C"
