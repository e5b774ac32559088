// The C interface of cpus, KV pools and sampling.
#include <algorithm>

#include "isa_dispatch.h"
#include "handles.h"

using namespace hasten;

namespace {

// One thread scans this many logits in the 200 to 400 microseconds that waking the workers takes.
constexpr int64_t kSingleThreadLogits = 1 << 20;

// Without top-k and min-p the kernel computes the exponentials or the noise of all logits, at about three times the cost.
int64_t sampling_cost(const hasten_sampling_params* params, int64_t rows, int64_t vocab_size) {
    int64_t cost = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const bool unfiltered = params[row].temperature != 0.0f && params[row].top_k == 0 && params[row].min_p == 0.0f;
        cost += unfiltered ? 3 * vocab_size : vocab_size;
    }
    return cost;
}

bool is_kv_shape(int64_t dtype, int64_t kv_heads, int64_t head_dim) {
    return in_range(dtype, 0, static_cast<int64_t>(Dtype::int8)) && in_range(head_dim, 1, kMaxHeadDim) &&
           in_range(kv_heads, 1, kMaxFeatures / head_dim);
}

bool are_blocks(const KvPool& pool, int64_t layer, const int64_t* blocks, int64_t count) {
    if (!in_range(layer, 0, int64_t{pool.num_layers()} - 1) || !in_range(count, 0, INT32_MAX)) return false;
    return std::all_of(blocks, blocks + count, [&](int64_t block) { return in_range(block, 0, int64_t{pool.num_blocks()} - 1); });
}

}  // namespace

extern "C" {

int32_t hasten_abi(void) { return HASTEN_ABI; }

void hasten_get_limits(hasten_limits* limits) {
    *limits = {kMaxThreads, kMaxFeatures, kMaxInt8Inputs, kMaxHeadDim, kMaxBlockSize, kMaxTokens};
}

int32_t hasten_runs_isa(const char* isa) { return find_kernels(isa) != nullptr; }

int32_t hasten_cpu_new(const char* isa, int64_t threads, hasten_cpu** cpu) {
    return guarded([&]() -> int32_t {
        if (!in_range(threads, 1, kMaxThreads)) return HASTEN_INVALID_ARGUMENT;
        const Kernels* kernels = isa == nullptr ? fastest_kernels() : find_kernels(isa);
        if (kernels == nullptr) return HASTEN_UNSUPPORTED;
        auto made = std::make_unique<hasten_cpu>(*kernels, static_cast<int>(threads));
        for (int64_t thread = 0; thread < threads; ++thread) {
            made->scratch.push_back(made->memory.allocate(static_cast<size_t>(std::max(kLinearScratch, kAttentionScratch))));
            if (made->scratch.back() == nullptr) return HASTEN_OUT_OF_MEMORY;
        }
        *cpu = made.release();
        return HASTEN_OK;
    });
}

void hasten_cpu_free(hasten_cpu* cpu) { delete cpu; }

const char* hasten_cpu_isa(const hasten_cpu* cpu) { return cpu->kernels.name; }

int32_t hasten_kv_new(int64_t num_blocks, int64_t block_size, hasten_kv** kv) {
    return guarded([&]() -> int32_t {
        if (!in_range(num_blocks, 0, INT32_MAX) || !in_range(block_size, 1, kMaxBlockSize)) return HASTEN_INVALID_ARGUMENT;
        *kv = new hasten_kv{KvPool(static_cast<int32_t>(num_blocks), static_cast<int32_t>(block_size))};
        return HASTEN_OK;
    });
}

void hasten_kv_free(hasten_kv* kv) { delete kv; }

int32_t hasten_kv_add_layer(hasten_kv* kv, int64_t group, int64_t dtype, int64_t kv_heads, int64_t head_dim) {
    return guarded([&]() -> int32_t {
        // Groups are numbered without gaps, so there are at most as many as layers.
        if (!in_range(group, 0, kMaxFeatures) || !is_kv_shape(dtype, kv_heads, head_dim)) return HASTEN_INVALID_ARGUMENT;
        return kv->pool.add_layer(static_cast<int32_t>(group), static_cast<Dtype>(dtype), static_cast<int32_t>(kv_heads),
                                  static_cast<int32_t>(head_dim));
    });
}

int32_t hasten_kv_copy_block(hasten_kv* kv, int64_t group, int64_t source, int64_t target) {
    const int64_t last = int64_t{kv->pool.num_blocks()} - 1;
    if (!in_range(group, 0, INT32_MAX) || !in_range(source, 0, last) || !in_range(target, 0, last)) return HASTEN_INVALID_ARGUMENT;
    kv->pool.copy_block(static_cast<int32_t>(group), static_cast<int32_t>(source), static_cast<int32_t>(target));
    return HASTEN_OK;
}

int32_t hasten_kv_move_token(hasten_kv* kv, int64_t group, int64_t source_block, int64_t source_slot, int64_t target_block,
                             int64_t target_slot) {
    const int64_t last_block = int64_t{kv->pool.num_blocks()} - 1, last_slot = int64_t{kv->pool.block_size()} - 1;
    if (!in_range(group, 0, INT32_MAX)) return HASTEN_INVALID_ARGUMENT;
    if (!in_range(source_block, 0, last_block) || !in_range(target_block, 0, last_block)) return HASTEN_INVALID_ARGUMENT;
    if (!in_range(source_slot, 0, last_slot) || !in_range(target_slot, 0, last_slot)) return HASTEN_INVALID_ARGUMENT;
    kv->pool.move_token(static_cast<int32_t>(group), {static_cast<int32_t>(source_block), static_cast<int32_t>(source_slot)},
                        {static_cast<int32_t>(target_block), static_cast<int32_t>(target_slot)});
    return HASTEN_OK;
}

int32_t hasten_kv_read_blocks(hasten_kv* kv, int64_t layer, const int64_t* blocks, int64_t count, void* out) {
    if (!are_blocks(kv->pool, layer, blocks, count)) return HASTEN_INVALID_ARGUMENT;
    kv->pool.read_blocks(static_cast<int32_t>(layer), blocks, count, static_cast<uint8_t*>(out));
    return HASTEN_OK;
}

int32_t hasten_kv_write_blocks(hasten_kv* kv, int64_t layer, const int64_t* blocks, int64_t count, const void* in) {
    if (!are_blocks(kv->pool, layer, blocks, count)) return HASTEN_INVALID_ARGUMENT;
    kv->pool.write_blocks(static_cast<int32_t>(layer), blocks, count, static_cast<const uint8_t*>(in));
    return HASTEN_OK;
}

int64_t hasten_kv_block_bytes(int64_t dtype, int64_t kv_heads, int64_t head_dim, int64_t block_size) {
    if (!is_kv_shape(dtype, kv_heads, head_dim) || !in_range(block_size, 1, kMaxBlockSize)) return HASTEN_INVALID_ARGUMENT;
    return kv_block_size(static_cast<Dtype>(dtype), static_cast<int32_t>(kv_heads), static_cast<int32_t>(head_dim),
                         static_cast<int32_t>(block_size))
        .total();
}

int32_t hasten_sample_tokens(hasten_cpu* cpu, const float* logits, int64_t rows, int64_t vocab_size, int64_t stride,
                             const hasten_sampling_params* params, const hasten_noise_key* keys, int32_t* tokens,
                             uint8_t* decided) {
    return guarded([&]() -> int32_t {
        if (!in_range(rows, 0, INT32_MAX) || !in_range(vocab_size, 1, INT32_MAX) || stride < vocab_size)
            return HASTEN_INVALID_ARGUMENT;
        const auto sample = [&](int64_t row, int) {
            const hasten_sampling_params& s = params[row];
            const auto sequence = static_cast<uint64_t>(keys[row].sequence), position = static_cast<uint64_t>(keys[row].position);
            const SampleTask task{
                logits + row * stride, vocab_size, s.temperature, s.tail_mass, s.min_p, s.top_k, s.seed, sequence, position};
            decided[row] = cpu->kernels.sample(task, tokens + row);
        };
        if (rows == 1 || sampling_cost(params, rows, vocab_size) <= kSingleThreadLogits) {
            for (int64_t row = 0; row < rows; ++row) sample(row, 0);
        } else {
            parallel_for(cpu, rows, sample);
        }
        return static_cast<int32_t>(std::count(decided, decided + rows, 0));
    });
}

}  // extern "C"
