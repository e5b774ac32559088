// The C interface of weights and their matrices.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "handles.h"

using namespace hasten;

namespace {

// Items end at multiples of 16 rows, so that no two threads write to one panel.
constexpr int32_t kPackRows = 64;

// Calls pack(row, rows) for pieces of rows [row, row + rows) in all threads. Returns HASTEN_NOT_FINITE if one call returns false.
template <class Pack>
int32_t pack_pieces(hasten_cpu* cpu, int64_t row, int64_t rows, Pack pack) {
    const int64_t first = row / kPackRows, last = (row + rows + kPackRows - 1) / kPackRows;
    std::atomic<bool> all_finite{true};
    parallel_for(cpu, last - first, [&](int64_t item, int) {
        const int64_t begin = std::max(row, (first + item) * kPackRows), end = std::min(row + rows, (first + item + 1) * kPackRows);
        if (!pack(static_cast<int32_t>(begin), static_cast<int32_t>(end - begin))) all_finite = false;
    });
    return all_finite ? HASTEN_OK : HASTEN_NOT_FINITE;
}

int32_t pack_rows(hasten_cpu* cpu, const PackTask& full) {
    const int64_t row_bytes = full.row_stride * (full.source_dtype == Dtype::f32 ? 4 : 2);
    return pack_pieces(cpu, full.row, full.rows, [&](int32_t begin, int32_t count) {
        PackTask task = full;
        task.row = begin;
        task.rows = count;
        task.source = static_cast<const char*>(full.source) + (begin - full.row) * row_bytes;
        return cpu->kernels.pack(task);
    });
}

// Converts a matrix with too many outliers to plain bf16, with the rows packed so far. Returns false when out of memory.
bool decompress_matrix(hasten_cpu* cpu, hasten_matrix& matrix) {
    const Matrix compressed = matrix.matrix;
    const int64_t stride = round_up(compressed.in_features, kLanes);
    // Allocated here, since an exception in another thread would end the process.
    std::vector<float> thread_rows(static_cast<size_t>(stride * cpu->threads.threads()));
    if (!allocate_matrix(*matrix.arena, {Dtype::bf16, compressed.out_features, compressed.in_features}, matrix.matrix))
        return false;
    parallel_for(cpu, (compressed.out_features + kPackRows - 1) / kPackRows, [&](int64_t item, int thread) {
        float* row = thread_rows.data() + stride * thread;
        const auto begin = static_cast<int32_t>(item) * kPackRows;
        for (int32_t i = begin; i < std::min(begin + kPackRows, compressed.out_features); ++i) {
            cpu->kernels.embed({&compressed, &i, false, {row, stride}, 0, 1});
            cpu->kernels.pack({&matrix.matrix, row, Dtype::f32, stride, 1, i, 1});
        }
    });
    matrix.arena->release(compressed.data, static_cast<size_t>(compressed.panels * compressed.panel_bytes));
    return true;
}

bool is_group_size(int64_t inputs) { return inputs == 16 || inputs == 32 || inputs == 64 || inputs == 128; }

// Contiguous rows copied with zero padding, and memory for their quantised and bf16 forms.
struct PaddedRows {
    Rows rows{};
    QuantizedRows quantized{};
    Bf16Rows bf16{};
    Int16Rows int16{};

    PaddedRows(Workspace& workspace, const Matrix& matrix, const float* x, int32_t count, bool quantize, bool use_bf16) {
        const int64_t width = matrix.in_features;
        rows.stride = row_bytes(width * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
        rows.data = workspace.allocate<float>(count * rows.stride);
        for (int32_t t = 0; t < count; ++t) {
            float* row = rows.data + t * rows.stride;
            std::memcpy(row, x + t * width, static_cast<size_t>(width) * sizeof(float));
            std::fill(row + width, row + rows.stride, 0.0f);
        }
        if (use_bf16) {
            bf16.stride = bf16_stride(width);
            bf16.data = workspace.allocate<uint16_t>(count * bf16.stride);
        }
        if (is_coded(matrix.dtype) && !quantize) {
            int16.stride = int16_stride(width);
            int16.blocks = int16_blocks(width);
            int16.data = workspace.allocate<uint8_t>(count * int16.stride);
            int16.scales = workspace.allocate<float>(count * int16.blocks);
            int16.sums = workspace.allocate<int32_t>(count * int16.blocks * 8);
        }
        if (!quantize) return;
        quantized.stride = row_bytes(round_up(width, kInt8RowPadding));
        quantized.data = workspace.allocate<int8_t>(count * quantized.stride);
        quantized.scales = workspace.allocate<float>(count);
        quantized.sums = workspace.allocate<int32_t>(count);
        std::memset(quantized.data, 0, static_cast<size_t>(count * quantized.stride));
        std::memset(quantized.sums, 0, static_cast<size_t>(count) * sizeof(int32_t));
    }

    // An upper bound for the bytes of `count` rows, with alignment.
    static int64_t bytes(const Matrix& matrix, int32_t count) {
        const int64_t width = round_up(matrix.in_features, kInt16BlockInputs) + 256;
        return count * width * int64_t{2 * sizeof(float) + 1} + 1024;
    }
};

// The product of hasten_matrix_multiply.
int32_t multiply(hasten_cpu* cpu, const Matrix& m, const float* x, int32_t rows, const float* bias, bool quantize, float* out) {
    const int64_t stride = int64_t{m.panels} * kLanes;
    const std::lock_guard<std::mutex> lock(cpu->workspace_mutex);
    if (!cpu->workspace.reserve(PaddedRows::bytes(m, rows) + (rows + 1) * stride * int64_t{sizeof(float)}))
        return HASTEN_OUT_OF_MEMORY;
    const bool use_bf16 = cpu->kernels.convert_to_bf16 != nullptr && is_bf16(m.dtype) && rows > kMaxVectorRows;
    const PaddedRows padded_x(cpu->workspace, m, x, rows, quantize, use_bf16);
    auto* padded_out = cpu->workspace.allocate<float>((rows + 1) * stride);
    float* padded_bias = padded_out + rows * stride;
    std::fill(padded_bias, padded_bias + stride, 0.0f);
    if (bias != nullptr) std::memcpy(padded_bias, bias, static_cast<size_t>(m.out_features) * sizeof(float));
    if (quantize) {
        NormTask task{};
        task.x = padded_x.rows;
        task.width = m.in_features;
        task.quantized = padded_x.quantized;
        task.end = rows;
        cpu->kernels.norm(task);
    }
    LinearTask task{};
    task.matrix = &m;
    task.rows = rows;
    task.x = padded_x.rows;
    task.quantized = padded_x.quantized;
    task.x_bf16 = padded_x.bf16;
    task.x_int16 = padded_x.int16;
    if (task.x_int16.data != nullptr) cpu->kernels.convert_to_int16({padded_x.rows, m.in_features, padded_x.int16, 0, rows});
    if (task.x_bf16.data != nullptr) cpu->kernels.convert_to_bf16({padded_x.rows, m.in_features, padded_x.bf16, 0, rows});
    task.bias = bias == nullptr ? nullptr : padded_bias;
    task.out = {padded_out, stride};
    const LinearPartition partition = partition_linear(cpu->kernels, task, cpu->threads.threads());
    parallel_for(cpu, partition.count(), [&](int64_t item, int thread) {
        run_linear_item(cpu->kernels, task, partition, item, cpu->scratch[static_cast<size_t>(thread)]);
    });
    for (int32_t t = 0; t < rows; ++t) {
        std::memcpy(out + int64_t{t} * m.out_features, padded_out + t * stride,
                    static_cast<size_t>(m.out_features) * sizeof(float));
    }
    cpu->workspace.trim();
    return HASTEN_OK;
}

// Adds an empty matrix to the weights, which own it.
int32_t add_matrix(hasten_weights* weights, const MatrixShape& shape, hasten_matrix** matrix) {
    auto made = std::make_unique<hasten_matrix>();
    made->arena = &weights->arena;
    if (!allocate_matrix(weights->arena, shape, made->matrix)) return HASTEN_OUT_OF_MEMORY;
    weights->matrices.push_back(std::move(made));
    *matrix = weights->matrices.back().get();
    return HASTEN_OK;
}

}  // namespace

extern "C" {

int32_t hasten_weights_new(hasten_weights** weights) {
    return guarded([&]() -> int32_t {
        *weights = new hasten_weights();
        return HASTEN_OK;
    });
}

void hasten_weights_free(hasten_weights* weights) { delete weights; }

int64_t hasten_weights_bytes(const hasten_weights* weights) { return static_cast<int64_t>(weights->arena.bytes()); }

int32_t hasten_matrix_new(hasten_weights* weights, int64_t dtype, int64_t out_features, int64_t in_features,
                          hasten_matrix** matrix) {
    return guarded([&]() -> int32_t {
        if (!in_range(dtype, 0, static_cast<int64_t>(Dtype::int4))) return HASTEN_INVALID_ARGUMENT;
        if (!in_range(out_features, 1, kMaxFeatures) || !in_range(in_features, 1, kMaxFeatures)) return HASTEN_INVALID_ARGUMENT;
        const auto requested = static_cast<Dtype>(dtype);
        const Dtype stored = requested == Dtype::bf16 ? Dtype::bf16_compressed : requested;
        return add_matrix(weights, {stored, static_cast<int32_t>(out_features), static_cast<int32_t>(in_features)}, matrix);
    });
}

int32_t hasten_matrix_new_grouped(hasten_weights* weights, int64_t dtype, int64_t out_features, int64_t in_features,
                                  int64_t group_inputs, int64_t has_offsets, int64_t is_nested, hasten_matrix** matrix) {
    return guarded([&]() -> int32_t {
        if (!in_range(dtype, static_cast<int64_t>(Dtype::codes4), static_cast<int64_t>(Dtype::fp8))) return HASTEN_INVALID_ARGUMENT;
        if (!in_range(out_features, 1, kMaxFeatures) || !in_range(in_features, 1, kMaxInt8Inputs)) return HASTEN_INVALID_ARGUMENT;
        const auto grouped = static_cast<Dtype>(dtype);
        if (!is_group_size(group_inputs) || ((has_offsets != 0 || is_nested != 0) && grouped == Dtype::fp8))
            return HASTEN_INVALID_ARGUMENT;
        const MatrixShape shape{grouped,
                                static_cast<int32_t>(out_features),
                                static_cast<int32_t>(in_features),
                                {static_cast<int32_t>(group_inputs), has_offsets != 0, is_nested != 0}};
        return add_matrix(weights, shape, matrix);
    });
}

int32_t hasten_matrix_pack_codes(hasten_cpu* cpu, hasten_matrix* matrix, const uint8_t* codes, int64_t row_stride,
                                 const float* scales, const float* offsets, int64_t row, int64_t rows) {
    return guarded([&]() -> int32_t {
        const Matrix& m = matrix->matrix;
        if (!in_range(row, 0, m.out_features) || !in_range(rows, 0, m.out_features - row)) return HASTEN_INVALID_ARGUMENT;
        if (rows == 0) return HASTEN_OK;
        if ((!is_grouped(m.dtype) && m.dtype != Dtype::int8) || m.groups.is_nested) return HASTEN_INVALID_ARGUMENT;
        if ((offsets != nullptr) != m.groups.has_offsets) return HASTEN_INVALID_ARGUMENT;
        const int64_t groups = m.dtype == Dtype::int8 ? 1 : num_groups(m);
        return pack_pieces(cpu, row, rows, [&](int32_t begin, int32_t count) {
            const int64_t skipped = begin - row;
            return cpu->kernels.pack_codes({&matrix->matrix, codes + skipped * row_stride, row_stride, scales + skipped * groups,
                                            offsets == nullptr ? nullptr : offsets + skipped * groups, begin, count});
        });
    });
}

int32_t hasten_matrix_pack_nested(hasten_cpu* cpu, hasten_matrix* matrix, const uint8_t* codes, int64_t row_stride,
                                  const int8_t* scales, const int8_t* offsets, const uint16_t* block_scales,
                                  const uint16_t* block_offsets, int64_t row, int64_t rows) {
    return guarded([&]() -> int32_t {
        const Matrix& m = matrix->matrix;
        if (!in_range(row, 0, m.out_features) || !in_range(rows, 0, m.out_features - row)) return HASTEN_INVALID_ARGUMENT;
        if (rows == 0) return HASTEN_OK;
        if (!m.groups.is_nested || (offsets != nullptr) != m.groups.has_offsets) return HASTEN_INVALID_ARGUMENT;
        if ((block_offsets != nullptr) != m.groups.has_offsets) return HASTEN_INVALID_ARGUMENT;
        return pack_pieces(cpu, row, rows, [&](int32_t begin, int32_t count) {
            const int64_t skipped = begin - row, groups = skipped * num_groups(m), blocks = skipped * num_blocks(m);
            return cpu->kernels.pack_nested({&matrix->matrix, codes + skipped * row_stride, row_stride, scales + groups,
                                             offsets == nullptr ? nullptr : offsets + groups, block_scales + blocks,
                                             block_offsets == nullptr ? nullptr : block_offsets + blocks, begin, count});
        });
    });
}

int32_t hasten_matrix_pack(hasten_cpu* cpu, hasten_matrix* matrix, const void* source, int64_t source_dtype, int64_t row_stride,
                           int64_t column_stride, int64_t row, int64_t rows) {
    return guarded([&]() -> int32_t {
        const int64_t out_features = matrix->matrix.out_features;
        if (!in_range(source_dtype, 0, static_cast<int64_t>(Dtype::f16)) || is_grouped(matrix->matrix.dtype))
            return HASTEN_INVALID_ARGUMENT;
        if (!in_range(row, 0, out_features) || !in_range(rows, 0, out_features - row)) return HASTEN_INVALID_ARGUMENT;
        PackTask task{&matrix->matrix,
                      source,
                      static_cast<Dtype>(source_dtype),
                      row_stride,
                      column_stride,
                      static_cast<int32_t>(row),
                      static_cast<int32_t>(rows)};
        if (const int32_t result = pack_rows(cpu, task); result != HASTEN_OK) return result;
        if (!outliers_overflow(matrix->matrix, task.row, task.rows)) return HASTEN_OK;
        if (!decompress_matrix(cpu, *matrix)) return HASTEN_OUT_OF_MEMORY;
        pack_rows(cpu, task);
        return HASTEN_OK;
    });
}

int32_t hasten_matrix_multiply(hasten_cpu* cpu, const hasten_matrix* matrix, const float* x, int64_t rows, const float* bias,
                               int64_t int8_activations, float* out) {
    return guarded([&]() -> int32_t {
        const Matrix& m = matrix->matrix;
        const bool quantize = int8_activations != 0;
        if (!in_range(rows, 0, kMaxTokens)) return HASTEN_INVALID_ARGUMENT;
        if (quantize && (!is_integer(m.dtype) || m.in_features > kMaxInt8Inputs)) return HASTEN_INVALID_ARGUMENT;
        return multiply(cpu, m, x, static_cast<int32_t>(rows), bias, quantize, out);
    });
}

int32_t hasten_matrix_lookup(hasten_cpu* cpu, const hasten_matrix* matrix, const int32_t* ids, int64_t count, float* out) {
    return guarded([&]() -> int32_t {
        // The kernel writes zeros up to the stride, so rows without full vectors go through a padded row.
        const int32_t width = matrix->matrix.in_features, out_features = matrix->matrix.out_features;
        const int64_t stride = round_up(width, kLanes);
        if (count < 0) return HASTEN_INVALID_ARGUMENT;
        if (!std::all_of(ids, ids + count, [=](int32_t id) { return id >= 0 && id < out_features; }))
            return HASTEN_INVALID_ARGUMENT;
        std::vector<float> row(static_cast<size_t>(stride));
        for (int64_t t = 0; t < count; ++t) {
            cpu->kernels.embed({&matrix->matrix, ids + t, false, {row.data(), stride}, 0, 1});
            std::memcpy(out + t * width, row.data(), static_cast<size_t>(width) * sizeof(float));
        }
        return HASTEN_OK;
    });
}

}  // extern "C"
