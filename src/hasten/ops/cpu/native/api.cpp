// The C interface over the classes. Nothing throws past it.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "cpu_features.h"
#include "hasten.h"
#include "program.h"

using namespace hasten;

// What one product outside of programs needs. It is kept: mapping and touching new memory costs more than a small product.
class EagerMemory {
public:
    // Begins again with at least so many bytes, which are not zero. False when memory is refused.
    bool begin(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        arena_ = std::make_unique<Arena>();
        data_ = static_cast<unsigned char*>(arena_->take(static_cast<size_t>(bytes)));
        size_ = data_ == nullptr ? 0 : bytes;
        return data_ != nullptr;
    }
    // Gives back what only few products need.
    void end() {
        if (size_ <= kKept) return;
        arena_.reset();
        size_ = 0;
    }
    template <class T>
    T* take(int64_t count) {
        T* found = reinterpret_cast<T*>(data_ + used_);
        used_ += round_up(count * int64_t{sizeof(T)}, int64_t{64});
        assert(used_ <= size_);
        return found;
    }

private:
    static constexpr int64_t kKept = int64_t{64} << 20;
    std::unique_ptr<Arena> arena_;
    unsigned char* data_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

struct hasten_cpu {
    hasten_cpu(const Kernels& kernels, int threads) : kernels(kernels), threads(threads) {}
    const Kernels& kernels;
    ThreadPool threads;
    Arena memory;
    std::vector<void*> scratch;  // per thread, for the calls outside programs
    std::mutex one_product;
    EagerMemory eager;
};

struct hasten_matrix {
    Matrix matrix;
};

struct hasten_weights {
    Arena arena;
    std::vector<std::unique_ptr<hasten_matrix>> matrices;
};

struct hasten_kv {
    KvPool pool;
};

struct hasten_program {
    Program program;
    std::mutex one_run;
};

namespace {

// Runs body(item, thread) for items [0, count) on all threads of the cpu.
template <class Body>
void share(hasten_cpu* cpu, int64_t count, Body body) {
    struct Context {
        hasten_cpu* cpu;
        int64_t count;
        Body* body;
    } context{cpu, count, &body};
    cpu->threads.run(
        [](void* raw, int thread) {
            auto* given = static_cast<Context*>(raw);
            given->cpu->threads.share(given->count, [&](int64_t item) { (*given->body)(item, thread); }, [] {});
        },
        &context);
}

// What one thread has done before the others, who sleep between steps, have woken up: 200 to 400 microseconds.
constexpr int64_t kLogitsAlone = 1 << 20;

// Without top-k and min-p the exponentials or the noise of all logits are computed: they count for more.
int64_t logits_to_draw(const hasten_draw_settings* settings, int32_t rows, int64_t count) {
    int64_t found = 0;
    for (int32_t row = 0; row < rows; ++row) {
        const bool whole = settings[row].temperature != 0.0f && settings[row].top_k == 0 && settings[row].min_p == 0.0f;
        found += whole ? 3 * count : count;
    }
    return found;
}

// Padded copies of contiguous rows, as the kernels want them, and their quantised form. Padding is zero.
struct EagerRows {
    Rows rows{};
    QuantizedRows quantized{};

    EagerRows(EagerMemory& memory, const Matrix& matrix, const float* x, int32_t count, bool quantize) {
        const int64_t width = matrix.in_features;
        rows.stride = row_bytes(width * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
        rows.data = memory.take<float>(count * rows.stride);
        for (int32_t t = 0; t < count; ++t) {
            float* row = rows.data + t * rows.stride;
            std::memcpy(row, x + t * width, static_cast<size_t>(width) * sizeof(float));
            std::fill(row + width, row + rows.stride, 0.0f);
        }
        if (!quantize) return;
        quantized.stride = row_bytes(round_up(width, std::max(kQuantPad, matrix.group)));
        quantized.group = matrix.group > 0 ? matrix.group : static_cast<int32_t>(rows.stride);
        quantized.sums_stride = (quantized.stride + quantized.group - 1) / quantized.group;
        quantized.data = memory.take<int8_t>(count * quantized.stride);
        quantized.scales = memory.take<float>(count);
        quantized.sums = memory.take<int32_t>(count * quantized.sums_stride);
        std::memset(quantized.data, 0, static_cast<size_t>(count * quantized.stride));
        std::memset(quantized.sums, 0, static_cast<size_t>(count * quantized.sums_stride) * sizeof(int32_t));
    }

    // Bytes that `count` rows take, and what they are rounded up by.
    static int64_t bytes(const Matrix& matrix, int32_t count) {
        const int64_t width = round_up(matrix.in_features, std::max(kQuantPad, matrix.group)) + 256;
        return count * width * int64_t{2 * sizeof(float) + 1} + 1024;
    }
};

Program& of(hasten_program* program) { return program->program; }

}  // namespace

extern "C" {

int32_t hasten_abi(void) { return HASTEN_ABI; }

hasten_cpu* hasten_cpu_new(const char* isa, int32_t threads) {
    const Kernels* kernels = isa == nullptr ? best_kernels() : find_kernels(isa);
    if (kernels == nullptr) return nullptr;
    auto* cpu = new (std::nothrow) hasten_cpu(*kernels, threads);
    if (cpu == nullptr) return nullptr;
    for (int thread = 0; thread < cpu->threads.threads(); ++thread) {
        cpu->scratch.push_back(cpu->memory.take(static_cast<size_t>(std::max(kLinearScratch, kAttentionScratch))));
    }
    return cpu;
}

void hasten_cpu_free(hasten_cpu* cpu) { delete cpu; }

const char* hasten_cpu_isa(const hasten_cpu* cpu) { return cpu->kernels.name; }

hasten_weights* hasten_weights_new(void) { return new (std::nothrow) hasten_weights(); }

void hasten_weights_free(hasten_weights* weights) { delete weights; }

int64_t hasten_weights_bytes(const hasten_weights* weights) { return static_cast<int64_t>(weights->arena.bytes()); }

hasten_matrix* hasten_matrix_new(hasten_weights* weights, int32_t dtype, int32_t out_features, int32_t in_features, int32_t group) {
    auto matrix = std::make_unique<hasten_matrix>();
    if (!make_matrix(weights->arena, static_cast<Dtype>(dtype), out_features, in_features, group, matrix->matrix)) return nullptr;
    weights->matrices.push_back(std::move(matrix));
    return weights->matrices.back().get();
}

void hasten_matrix_pack(hasten_cpu* cpu, hasten_matrix* matrix, const void* source, int32_t source_dtype, int64_t row_stride,
                        int64_t column_stride, int32_t row, int32_t rows) {
    // Items end at multiples of 16 rows: no two threads write into one panel.
    constexpr int32_t kRowsEach = 64;
    const int32_t first = row / kRowsEach, last = (row + rows + kRowsEach - 1) / kRowsEach;
    const int64_t element = source_dtype == static_cast<int32_t>(Dtype::f32) ? 4 : 2;
    share(cpu, last - first, [&](int64_t item, int) {
        const int32_t begin = std::max(row, (first + static_cast<int32_t>(item)) * kRowsEach);
        const int32_t end = std::min(row + rows, (first + static_cast<int32_t>(item) + 1) * kRowsEach);
        const char* part = static_cast<const char*>(source) + (begin - row) * row_stride * element;
        cpu->kernels.pack({&matrix->matrix, part, static_cast<Dtype>(source_dtype), row_stride, column_stride, begin, end - begin});
    });
}

int32_t hasten_matrix_multiply(hasten_cpu* cpu, const hasten_matrix* matrix, const float* x, int32_t rows, const float* bias,
                               int32_t int8_activations, float* out) {
    const Matrix& m = matrix->matrix;
    const int64_t stride = int64_t{m.panels} * kLanes;
    const std::lock_guard<std::mutex> lock(cpu->one_product);
    if (!cpu->eager.begin(EagerRows::bytes(m, rows) + (rows + 1) * stride * int64_t{sizeof(float)})) return 1;
    const EagerRows given(cpu->eager, m, x, rows, int8_activations != 0);
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

hasten_kv* hasten_kv_new(int32_t num_blocks, int32_t slots) { return new (std::nothrow) hasten_kv{KvPool(num_blocks, slots)}; }

void hasten_kv_free(hasten_kv* kv) { delete kv; }

int32_t hasten_kv_add_layer(hasten_kv* kv, int32_t group, int32_t dtype, int32_t kv_heads, int32_t head_dim) {
    return kv->pool.add_layer(group, static_cast<Dtype>(dtype), kv_heads, head_dim);
}

void hasten_kv_copy(hasten_kv* kv, int32_t group, int32_t source, int32_t target) { kv->pool.copy(group, source, target); }

void hasten_kv_move(hasten_kv* kv, int32_t group, int32_t source_block, int32_t source_slot, int32_t target_block,
                    int32_t target_slot) {
    kv->pool.move(group, {source_block, source_slot}, {target_block, target_slot});
}

int64_t hasten_kv_block_bytes(int32_t dtype, int32_t kv_heads, int32_t head_dim, int32_t slots) {
    return kv_block_size(static_cast<Dtype>(dtype), kv_heads, head_dim, slots).total();
}

hasten_program* hasten_program_new(hasten_cpu* cpu, hasten_kv* kv, int32_t max_tokens) {
    return new (std::nothrow) hasten_program{Program(cpu->kernels, cpu->threads, kv->pool, max_tokens), {}};
}

void hasten_program_free(hasten_program* program) { delete program; }

int32_t hasten_program_rows(hasten_program* program, int32_t width) { return of(program).add_rows(width); }

int32_t hasten_program_part(hasten_program* program, int32_t buffer, int32_t column) {
    return of(program).add_part(buffer, column);
}

int32_t hasten_program_quantized_rows(hasten_program* program, int32_t width, int32_t group) {
    return of(program).add_quantized_rows(width, group);
}

float* hasten_program_data(hasten_program* program, int32_t buffer, int64_t* stride) {
    const Rows rows = of(program).rows(buffer);
    *stride = rows.stride;
    return rows.data;
}

void hasten_program_begin_layer(hasten_program* program) { of(program).begin_layer(); }

void hasten_program_begin_head(hasten_program* program) { of(program).begin_head(); }

void hasten_program_embed(hasten_program* program, const hasten_matrix* matrix, int32_t by_position, int32_t out) {
    Program& p = of(program);
    p.add(std::make_unique<Embed>(p.kernels(), matrix->matrix, by_position != 0, p.rows(out)));
}

int32_t hasten_program_rotary(hasten_program* program, const float* inverse_frequencies, int32_t half, float factor) {
    Program& p = of(program);
    const int32_t index = p.add_rotary(half);
    if (index < 0) return -1;
    RotaryTask task{};
    task.inverse_frequencies = inverse_frequencies;
    task.half = half;
    task.factor = factor;
    task.table = p.rotary(index);
    p.add(std::make_unique<Rotary>(p.kernels(), task));
    return index;
}

void hasten_program_norm(hasten_program* program, int32_t kind, int32_t x, int32_t width, const float* weight, const float* bias,
                         float eps, int32_t out, int32_t quantized) {
    Program& p = of(program);
    NormTask task{};
    task.kind = static_cast<NormKind>(kind);
    task.x = p.rows(x);
    task.width = width;
    task.weight = weight;
    task.bias = bias;
    task.eps = eps;
    task.out = p.rows(out);
    task.quantized = p.quantized_rows(quantized);
    p.add(std::make_unique<Norm>(p.kernels(), p.extent(), task));
}

void hasten_program_linear(hasten_program* program, const hasten_matrix* matrix, int32_t x, int32_t quantized, const float* bias,
                           int32_t out, int32_t add, int32_t gated, int32_t activation) {
    Program& p = of(program);
    LinearTask task{};
    task.matrix = &matrix->matrix;
    task.x = p.rows(x);
    task.quantized = p.quantized_rows(quantized);
    task.bias = bias;
    task.out = p.rows(out);  // HASTEN_LOGITS: null, set in each step
    task.add = add != 0;
    task.gated = gated != 0;
    task.activation = static_cast<Activation>(activation);
    if (p.kernels().narrow != nullptr && matrix->matrix.dtype == Dtype::bf16 && task.x.data != nullptr) {
        const int32_t width = matrix->matrix.in_features;
        task.narrow = p.narrow_rows(width);
        if (task.narrow.data != nullptr) {
            p.add(std::make_unique<Narrow>(p.kernels(), p.extent(), NarrowTask{task.x, width, task.narrow, 0, 0}));
        }
    }
    p.add(std::make_unique<Linear>(p.kernels(), p.extent(), task));
}

void hasten_program_activate(hasten_program* program, int32_t activation, int32_t gated, int32_t x, int32_t width, int32_t out,
                             int32_t quantized) {
    Program& p = of(program);
    ActivateTask task{};
    task.activation = static_cast<Activation>(activation);
    task.gated = gated != 0;
    task.x = p.rows(x);
    task.width = width;
    task.out = p.rows(out);
    task.quantized = p.quantized_rows(quantized);
    p.add(std::make_unique<Activate>(p.kernels(), p.extent(), task));
}

void hasten_program_prepare(hasten_program* program, int32_t layer, int32_t qkv, int32_t heads, int32_t norm, const float* q_weight,
                            const float* q_bias, const float* k_weight, const float* k_bias, float eps, int32_t rotary) {
    Program& p = of(program);
    PrepareTask task{};
    task.kv = &p.kv().layer(layer);
    task.qkv = p.rows(qkv);
    task.heads = heads;
    task.kv_heads = task.kv->kv_heads;
    task.head_dim = task.kv->head_dim;
    task.norm = static_cast<NormKind>(norm);
    task.q_weight = q_weight;
    task.q_bias = q_bias;
    task.k_weight = k_weight;
    task.k_bias = k_bias;
    task.eps = eps;
    task.rotary = p.rotary(rotary);
    p.add(std::make_unique<Prepare>(p.kernels(), p.kv().group_of(layer), task));
}

void hasten_program_attend(hasten_program* program, int32_t layer, int32_t qkv, int32_t heads, float scale, float soft_cap,
                           int32_t window, const float* sinks, int32_t out) {
    Program& p = of(program);
    AttentionTask task{};
    task.kv = &p.kv().layer(layer);
    task.q = p.rows(qkv);
    task.heads = heads;
    task.kv_heads = task.kv->kv_heads;
    task.head_dim = task.kv->head_dim;
    task.scale = scale;
    task.soft_cap = soft_cap;
    task.window = window;
    task.sinks = sinks;
    task.narrow = p.narrows();
    task.out = p.rows(out);
    const int32_t group = p.kv().group_of(layer);
    const AttentionCuts& cuts = p.cuts_for(group, task);
    p.add(std::make_unique<Attend>(p.kernels(), group, task, cuts, false));
    p.add(std::make_unique<Attend>(p.kernels(), group, task, cuts, true));
}

void hasten_program_gather(hasten_program* program, int32_t x, int32_t width, int32_t out) {
    Program& p = of(program);
    p.add(std::make_unique<Gather>(p.rows(x), width, p.rows(out)));
}

int32_t hasten_program_run(hasten_program* program, const hasten_step* step) {
    std::lock_guard<std::mutex> lock(program->one_run);
    return of(program).run(*step) ? 0 : 1;
}

int32_t hasten_draw(hasten_cpu* cpu, const float* logits, int32_t rows, int64_t count, int64_t stride,
                    const hasten_draw_settings* settings, const hasten_draw_key* keys, int32_t* tokens, uint8_t* decided) {
    const auto draw = [&](int64_t row, int) {
        const hasten_draw_settings& s = settings[row];
        const auto sequence = static_cast<uint64_t>(keys[row].sequence), position = static_cast<uint64_t>(keys[row].position);
        const DrawTask task{logits + row * stride, count, s.temperature, s.tail, s.min_p, s.top_k, s.seed, sequence, position};
        decided[row] = cpu->kernels.draw(task, tokens + row);
    };
    if (rows == 1 || logits_to_draw(settings, rows, count) <= kLogitsAlone) {
        for (int32_t row = 0; row < rows; ++row) draw(row, 0);
    } else {
        share(cpu, rows, draw);
    }
    return static_cast<int32_t>(std::count(decided, decided + rows, 0));
}

}  // extern "C"
