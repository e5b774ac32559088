// The C interface of cpus, KV pools, programs and sampling. No exception passes it.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "isa_dispatch.h"
#include "handles.h"

using namespace hasten;

namespace {

// One thread scans this many logits in the 200 to 400 microseconds that waking the workers takes.
constexpr int64_t kSingleThreadLogits = 1 << 20;

// Without top-k and min-p the kernel computes the exponentials or the noise of all logits, at about three times the cost.
int64_t sampling_cost(const hasten_sampling_params* params, int32_t rows, int64_t vocab_size) {
    int64_t cost = 0;
    for (int32_t row = 0; row < rows; ++row) {
        const bool unfiltered = params[row].temperature != 0.0f && params[row].top_k == 0 && params[row].min_p == 0.0f;
        cost += unfiltered ? 3 * vocab_size : vocab_size;
    }
    return cost;
}

Program& get(hasten_program* program) { return program->program; }

}  // namespace

extern "C" {

int32_t hasten_abi(void) { return HASTEN_ABI; }

hasten_cpu* hasten_cpu_new(const char* isa, int32_t threads) {
    const Kernels* kernels = isa == nullptr ? fastest_kernels() : find_kernels(isa);
    if (kernels == nullptr) return nullptr;
    auto* cpu = new (std::nothrow) hasten_cpu(*kernels, threads);
    if (cpu == nullptr) return nullptr;
    for (int thread = 0; thread < cpu->threads.threads(); ++thread) {
        cpu->scratch.push_back(cpu->memory.allocate(static_cast<size_t>(std::max(kLinearScratch, kAttentionScratch))));
    }
    return cpu;
}

void hasten_cpu_free(hasten_cpu* cpu) { delete cpu; }

const char* hasten_cpu_isa(const hasten_cpu* cpu) { return cpu->kernels.name; }

hasten_kv* hasten_kv_new(int32_t num_blocks, int32_t block_size) {
    return new (std::nothrow) hasten_kv{KvPool(num_blocks, block_size)};
}

void hasten_kv_free(hasten_kv* kv) { delete kv; }

int32_t hasten_kv_add_layer(hasten_kv* kv, int32_t group, int32_t dtype, int32_t kv_heads, int32_t head_dim) {
    return kv->pool.add_layer(group, static_cast<Dtype>(dtype), kv_heads, head_dim);
}

void hasten_kv_copy_block(hasten_kv* kv, int32_t group, int32_t source, int32_t target) {
    kv->pool.copy_block(group, source, target);
}

void hasten_kv_move_token(hasten_kv* kv, int32_t group, int32_t source_block, int32_t source_slot, int32_t target_block,
                          int32_t target_slot) {
    kv->pool.move_token(group, {source_block, source_slot}, {target_block, target_slot});
}

int64_t hasten_kv_block_bytes(int32_t dtype, int32_t kv_heads, int32_t head_dim, int32_t block_size) {
    return kv_block_size(static_cast<Dtype>(dtype), kv_heads, head_dim, block_size).total();
}

hasten_program* hasten_program_new(hasten_cpu* cpu, hasten_kv* kv, int32_t max_tokens) {
    return new (std::nothrow) hasten_program{Program(cpu->kernels, cpu->threads, kv->pool, max_tokens), {}};
}

void hasten_program_free(hasten_program* program) { delete program; }

int32_t hasten_program_add_buffer(hasten_program* program, int32_t width) { return get(program).add_buffer(width); }

int32_t hasten_program_add_slice(hasten_program* program, int32_t buffer, int32_t column) {
    return get(program).add_slice(buffer, column);
}

int32_t hasten_program_add_int8_buffer(hasten_program* program, int32_t width) { return get(program).add_int8_buffer(width); }

float* hasten_program_buffer_data(hasten_program* program, int32_t buffer, int64_t* stride) {
    const Rows rows = get(program).rows(buffer);
    *stride = rows.stride;
    return rows.data;
}

void hasten_program_begin_layer(hasten_program* program) { get(program).begin_layer(); }

void hasten_program_begin_head(hasten_program* program) { get(program).begin_head(); }

void hasten_program_embed(hasten_program* program, const hasten_matrix* matrix, int32_t by_position, int32_t out) {
    Program& p = get(program);
    p.add(std::make_unique<Embed>(p.kernels(), matrix->matrix, by_position != 0, p.rows(out)));
}

int32_t hasten_program_rotary_table(hasten_program* program, const float* inverse_frequencies, int32_t half, float factor) {
    Program& p = get(program);
    const int32_t index = p.add_rotary_table(half);
    if (index < 0) return -1;
    RotaryTableTask task{};
    task.inverse_frequencies = inverse_frequencies;
    task.half = half;
    task.factor = factor;
    task.cos_sin = p.rotary_table(index);
    p.add(std::make_unique<RotaryTable>(p.kernels(), task));
    return index;
}

void hasten_program_norm(hasten_program* program, int32_t kind, int32_t x, int32_t width, const float* weight, const float* bias,
                         float eps, int32_t out, int32_t quantized) {
    Program& p = get(program);
    NormTask task{};
    task.kind = static_cast<NormKind>(kind);
    task.x = p.rows(x);
    task.width = width;
    task.weight = weight;
    task.bias = bias;
    task.eps = eps;
    task.out = p.rows(out);
    task.quantized = p.quantized_rows(quantized);
    p.add(std::make_unique<Norm>(p.kernels(), p.scope(), task));
}

void hasten_program_linear(hasten_program* program, const hasten_matrix* matrix, int32_t x, int32_t quantized, const float* bias,
                           int32_t out, int32_t add, int32_t gated, int32_t activation) {
    Program& p = get(program);
    LinearTask task{};
    task.matrix = &matrix->matrix;
    task.x = p.rows(x);
    task.quantized = p.quantized_rows(quantized);
    task.bias = bias;
    task.out = p.rows(out);  // null for HASTEN_LOGITS; set in each step
    task.add = add != 0;
    task.gated = gated != 0;
    task.activation = static_cast<Activation>(activation);
    if (p.kernels().convert_to_bf16 != nullptr && is_bf16(matrix->matrix.dtype) && task.x.data != nullptr) {
        const int32_t width = matrix->matrix.in_features;
        task.x_bf16 = p.bf16_rows(width);
        if (task.x_bf16.data != nullptr) {
            p.add(std::make_unique<ConvertToBf16>(p.kernels(), p.scope(), ConvertToBf16Task{task.x, width, task.x_bf16, 0, 0}));
        }
    }
    p.add(std::make_unique<Linear>(p.kernels(), p.scope(), task));
}

void hasten_program_activate(hasten_program* program, int32_t activation, int32_t gated, int32_t x, int32_t width, int32_t out,
                             int32_t quantized) {
    Program& p = get(program);
    ActivateTask task{};
    task.activation = static_cast<Activation>(activation);
    task.gated = gated != 0;
    task.x = p.rows(x);
    task.width = width;
    task.out = p.rows(out);
    task.quantized = p.quantized_rows(quantized);
    p.add(std::make_unique<Activate>(p.kernels(), p.scope(), task));
}

void hasten_program_rope_and_cache(hasten_program* program, int32_t layer, int32_t qkv, int32_t heads, int32_t norm,
                                   const float* q_weight, const float* q_bias, const float* k_weight, const float* k_bias,
                                   float eps, int32_t rotary_table) {
    Program& p = get(program);
    RopeAndCacheTask task{};
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
    task.cos_sin = p.rotary_table(rotary_table);
    p.add(std::make_unique<RopeAndCache>(p.kernels(), p.kv().group_of(layer), task));
}

void hasten_program_attend(hasten_program* program, int32_t layer, int32_t qkv, int32_t heads, float scale, float soft_cap,
                           int32_t window, const float* sinks, int32_t out) {
    Program& p = get(program);
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
    task.allow_bf16 = p.has_bf16_rows();
    task.out = p.rows(out);
    const int32_t group = p.kv().group_of(layer);
    const AttentionPlanner& planner = p.planner_for(group, task);
    p.add(std::make_unique<Attend>(p.kernels(), group, task, planner, false));
    p.add(std::make_unique<Attend>(p.kernels(), group, task, planner, true));
}

void hasten_program_gather(hasten_program* program, int32_t x, int32_t width, int32_t out) {
    Program& p = get(program);
    p.add(std::make_unique<Gather>(p.rows(x), width, p.rows(out)));
}

int32_t hasten_program_run(hasten_program* program, const hasten_step* step) {
    std::lock_guard<std::mutex> lock(program->run_mutex);
    return get(program).run(*step) ? 0 : 1;
}

int32_t hasten_sample_tokens(hasten_cpu* cpu, const float* logits, int32_t rows, int64_t vocab_size, int64_t stride,
                             const hasten_sampling_params* params, const hasten_noise_key* keys, int32_t* tokens,
                             uint8_t* decided) {
    const auto sample = [&](int64_t row, int) {
        const hasten_sampling_params& s = params[row];
        const auto sequence = static_cast<uint64_t>(keys[row].sequence), position = static_cast<uint64_t>(keys[row].position);
        const SampleTask task{
            logits + row * stride, vocab_size, s.temperature, s.tail_mass, s.min_p, s.top_k, s.seed, sequence, position};
        decided[row] = cpu->kernels.sample(task, tokens + row);
    };
    if (rows == 1 || sampling_cost(params, rows, vocab_size) <= kSingleThreadLogits) {
        for (int32_t row = 0; row < rows; ++row) sample(row, 0);
    } else {
        parallel_for(cpu, rows, sample);
    }
    return static_cast<int32_t>(std::count(decided, decided + rows, 0));
}

}  // extern "C"
