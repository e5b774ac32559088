// Speed of attention with the shape of Qwen3-0.6B: bytes of keys and values per second in decode, operations per second in prefill.
// The limits of this machine for reading and multiplying are measured in the same run.
//
//   attention [threads] [context] [prompt] [block size] [instruction set] [type] [sequences]
//
// context 0 or prompt 0: skips that part. sequences: decoded together, each with that context.
#pragma GCC diagnostic ignored "-Wuninitialized"  // in the compiler's header
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "../../src/hasten/ops/cpu/native/kernels.h"

using namespace hasten;

namespace {

constexpr int kHeads = 16, kKvHeads = 8, kDim = 128, kLayers = 28;
int block_size = 16;

// Threads that spin for work, so that thread start is not measured.
class ThreadTeam {
public:
    explicit ThreadTeam(int threads) : size(threads) {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { work_loop(i); });
    }
    ~ThreadTeam() {
        stop_ = true;
        ++round_;
        for (std::thread& thread : threads_) thread.join();
    }
    void run(const std::function<void(int)>& work) {
        work_ = &work;
        done_ = 0;
        ++round_;
        work(0);
        for (int spins = 0; done_ < size - 1; ++spins) wait(spins);
    }
    const int size;

private:
    // On a busy machine a spinning thread would take the processor of another.
    static void wait(int spins) { spins < 2000 ? _mm_pause() : std::this_thread::yield(); }
    void work_loop(int index) {
        for (int seen = 0;;) {
            for (int spins = 0; round_ == seen; ++spins) wait(spins);
            seen = round_;
            if (stop_) return;
            (*work_)(index);
            ++done_;
        }
    }
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<int> round_{0}, done_{0};
    std::atomic<bool> stop_{false};
};

uint8_t* allocate_huge(size_t bytes) {
    constexpr size_t kPage = size_t{2} << 20;
    bytes = (bytes + kPage - 1) / kPage * kPage;
    void* memory = std::aligned_alloc(kPage, bytes);
    madvise(memory, bytes, MADV_HUGEPAGE);
    std::memset(memory, 0x3c, bytes);  // small normal numbers in every dtype
    return static_cast<uint8_t*>(memory);
}

// The shortest of `repeats`, to exclude the load of other processes.
double seconds(const std::function<void()>& work, int repeats) {
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        work();
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    return times[0];
}

void attend(const Kernels& kernels, ThreadTeam& team, AttentionTask task, std::vector<uint8_t*>& scratch) {
    std::atomic<int64_t> next{0};
    const int64_t items = task.plan->items, merges = task.plan->merges;
    team.run([&](int thread) {
        for (int64_t item; (item = next++) < items;) kernels.attend(task, item, scratch[static_cast<size_t>(thread)]);
    });
    if (merges == 0) return;
    next = 0;
    team.run([&](int) {
        for (int64_t item; (item = next++) < merges;) kernels.merge_splits(task, item);
    });
}

int blocks_of(int tokens) { return (tokens + block_size - 1) / block_size; }

// The pool of all layers, with the blocks of all sequences in random order.
struct Pool {
    std::vector<KvLayer> layers;
    std::vector<int32_t> blocks;
    double bytes = 0;  // of one layer's keys and values

    Pool(Dtype dtype, int num_layers, int sequences, int tokens) {
        const int count = sequences * blocks_of(tokens);
        const size_t num_slots = static_cast<size_t>(count * kKvHeads * block_size);
        const size_t size = dtype == Dtype::int8 ? 1 : dtype == Dtype::f32 ? 4 : 2;
        bytes = 2.0 * sequences * tokens * kKvHeads * (kDim * static_cast<double>(size) + (dtype == Dtype::int8 ? 4 : 0));
        for (int l = 0; l < num_layers; ++l) {
            KvLayer kv{
                dtype,   kKvHeads, kDim, block_size, allocate_huge(num_slots * kDim * size), allocate_huge(num_slots * kDim * size),
                nullptr, nullptr};
            kv.key_scales = reinterpret_cast<float*>(allocate_huge(num_slots * 4));
            kv.value_scales = reinterpret_cast<float*>(allocate_huge(num_slots * 4));
            for (size_t i = 0; i < num_slots; ++i) kv.key_scales[i] = kv.value_scales[i] = 0.01f;
            layers.push_back(kv);
        }
        blocks.resize(static_cast<size_t>(count));
        std::iota(blocks.begin(), blocks.end(), 0);
        uint32_t state = 1;
        for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[(state = state * 1664525u + 1013904223u) % i]);
    }
    ~Pool() {
        for (KvLayer& kv : layers) {
            for (void* memory : {static_cast<void*>(kv.keys), static_cast<void*>(kv.values), static_cast<void*>(kv.key_scales),
                                 static_cast<void*>(kv.value_scales)}) {
                std::free(memory);
            }
        }
    }
};

// Seconds of the fastest layer, times the number of layers, for one step of `tokens` tokens at the end of each sequence.
double step_time(const Kernels& kernels, ThreadTeam& team, Pool& pool, int sequences, int context, int tokens, int repeats) {
    const int stride = (kHeads + 2 * kKvHeads) * kDim, out_stride = kHeads * kDim;
    const size_t num_tokens = static_cast<size_t>(sequences) * static_cast<size_t>(tokens);
    float* q = reinterpret_cast<float*>(allocate_huge(num_tokens * stride * 4));
    float* out = reinterpret_cast<float*>(allocate_huge(num_tokens * out_stride * 4));
    for (size_t i = 0; i < num_tokens * stride; ++i) q[i] = static_cast<float>(i % 17) * 0.05f - 0.4f;
    std::vector<uint8_t*> scratch;
    for (int i = 0; i < team.size; ++i) scratch.push_back(allocate_huge(kAttentionScratch));
    std::vector<SequenceSpan> sequence_spans;
    for (int i = 0; i < sequences; ++i) {
        const int32_t* blocks = pool.blocks.data() + i * blocks_of(context);
        sequence_spans.push_back({i * tokens, (i + 1) * tokens, context - tokens, 0, blocks, nullptr});
    }
    AttentionTask task{};
    task.q = {q, stride};
    task.heads = kHeads;
    task.kv_heads = kKvHeads;
    task.head_dim = kDim;
    task.scale = 0.088f;
    task.sequences = sequence_spans.data();
    task.num_sequences = sequences;
    task.out = {out, out_stride};
    task.num_threads = team.size;
    task.kv = &pool.layers[0];
    std::vector<SequencePartition> partitions(sequence_spans.size());
    AttentionPlan plan{};
    plan.partitions = partitions.data();
    kernels.plan_attention(task, plan);
    std::vector<float> partials(static_cast<size_t>(plan.partial_bytes) / 4 + 16);
    task.plan = &plan;
    task.partials = partials.data();
    double shortest = 1e9;
    for (int i = 0; i < repeats; ++i) {
        for (const KvLayer& kv : pool.layers) {
            task.kv = &kv;
            shortest = std::min(shortest, seconds([&] { attend(kernels, team, task, scratch); }, 1));
        }
    }
    for (uint8_t* memory : scratch) std::free(memory);
    std::free(q);
    std::free(out);
    return shortest * static_cast<double>(pool.layers.size());
}

__attribute__((target("avx512f"))) float read_all(const uint8_t* memory, size_t bytes) {
    __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 256) {
        for (size_t j = 0; j < 256; j += 64) __builtin_prefetch(memory + i + j + 4096, 0, 2);
        a = _mm512_add_ps(a, _mm512_load_ps(memory + i));
        b = _mm512_add_ps(b, _mm512_load_ps(memory + i + 64));
        c = _mm512_add_ps(c, _mm512_load_ps(memory + i + 128));
        d = _mm512_add_ps(d, _mm512_load_ps(memory + i + 192));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
}

__attribute__((target("avx512f"))) float multiply_all(int rounds) {
    __m512 acc[16];
    for (__m512& a : acc) a = _mm512_set1_ps(0.5f);
    __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
    for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
        for (__m512& a : acc) a = _mm512_fmadd_ps(a, x, y);
    }
    for (int i = 1; i < 16; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    return _mm512_reduce_add_ps(acc[0]);
}

volatile float sink;

double measure_read_limit(ThreadTeam& team) {
    const size_t bytes = size_t{512} << 20;  // more than every cache
    std::vector<uint8_t*> memory;
    for (int i = 0; i < team.size; ++i) memory.push_back(allocate_huge(bytes));
    const double time =
        seconds([&] { team.run([&](int t) { sink = read_all(memory[static_cast<size_t>(t)], bytes - 8192); }); }, 5);
    for (uint8_t* p : memory) std::free(p);
    return static_cast<double>(bytes) * team.size / time;
}

double measure_multiply_limit(ThreadTeam& team) {
    const int rounds = 20000;
    const double time = seconds([&] { team.run([&](int) { sink = multiply_all(rounds); }); }, 40);
    return 16.0 * 32.0 * rounds * team.size / time;
}

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const int threads = argc > 1 ? std::atoi(argv[1]) : 2, context = argc > 2 ? std::atoi(argv[2]) : 8192;
    const int prompt = argc > 3 ? std::atoi(argv[3]) : 512;
    if (argc > 4) block_size = std::atoi(argv[4]);
    const int sequences = argc > 7 ? std::atoi(argv[7]) : 1;
    ThreadTeam team(threads);
    const Dtype dtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::int8};
    const char* names[] = {"f32", "bf16", "f16", "int8"};
    std::vector<const Kernels*> tables{avx512_kernels(), avx2_kernels()};
    if (syscall(SYS_arch_prctl, 0x1023L, 18L) == 0) tables.insert(tables.begin(), amx_kernels());  // requests the tile registers
    const auto chosen = [&](int place, const char* name) { return argc <= place || std::strcmp(argv[place], name) == 0; };
    for (const Kernels* kernels : tables) {
        if (!chosen(5, kernels->name)) continue;
        const double read = measure_read_limit(team), rate = measure_multiply_limit(team);
        std::printf("%s, %d threads: reads %.1f GB/s, multiplies %.0f GFLOP/s\n", kernels->name, threads, read * 1e-9, rate * 1e-9);
        for (int i = 0; i < 4 && context > 0; ++i) {
            if (!chosen(6, names[i])) continue;
            Pool pool(dtypes[i], dtypes[i] == Dtype::f32 ? 7 : kLayers, sequences, context);
            const double layers = static_cast<double>(pool.layers.size());
            const double time = step_time(*kernels, team, pool, sequences, context, 1, 9);
            const double speed = pool.bytes * layers / time;
            std::printf("  decode  %-4s context %d: %6.2f ms for %d layers, %5.1f GB/s, %3.0f %% of reading\n", names[i], context,
                        time * 1e3 * kLayers / layers, kLayers, speed * 1e-9, 100 * speed / read);
        }
        for (int i = 0; i < 4 && prompt > 0; ++i) {
            if (!chosen(6, names[i])) continue;
            Pool pool(dtypes[i], kLayers, 1, prompt);
            const double time = step_time(*kernels, team, pool, 1, prompt, prompt, 5);
            const double flops = 4.0 * kLayers * kHeads * kDim * (static_cast<double>(prompt) * (prompt + 1) / 2);
            std::printf("  prefill %-4s tokens  %d: %6.2f ms for %d layers, %4.0f GFLOP/s, %3.0f %% of multiplying\n", names[i],
                        prompt, time * 1e3, kLayers, flops / time * 1e-9, 100 * flops / time / rate);
        }
    }
}
