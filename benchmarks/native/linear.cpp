// Speed of matrix products: gigabytes of weights and operations per second of each form, with one and two threads. The weights
// exceed every cache and are in huge pages. Each figure is the best of several rounds, by wall-clock time and by the processor time
// of the threads, which excludes the load of other processes.
//
//   linear [isa: avx2, avxvnni, avx512, amx] [form: all, f32, bf16, bf16c, f16, int8, int4, int8w, int4w] [rounds] [rows]
//   (c: compressed, w: float activations)
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../src/hasten/ops/cpu/native/matrix.h"
#include "huge_pages.h"

using namespace hasten;

namespace {

constexpr int64_t kColdBytes = int64_t{640} << 20;

struct Form {
    const char* name;
    Dtype dtype;
    bool quantized;
};
constexpr Form kForms[] = {{"f32", Dtype::f32, false},  {"bf16", Dtype::bf16, false}, {"bf16c", Dtype::bf16_compressed, false},
                           {"f16", Dtype::f16, false},  {"int8", Dtype::int8, true},  {"int8w", Dtype::int8, false},
                           {"int4", Dtype::int4, true}, {"int4w", Dtype::int4, false}};

struct Shape {
    int out, in;
};
constexpr Shape kShapes[] = {{4096, 1024}, {1024, 3072}, {6144, 1024}, {151936, 1024}};
constexpr int kRowCounts[] = {1, 2, 4, 8, 9, 12, 16, 32, 64, 512};

struct Workload {
    std::vector<Matrix> matrices;
    LinearTask task;
    int64_t bytes = 0;  // of all matrices, with scales
};

// Memory that all cases share. Its contents do not affect the speed.
struct Memory {
    uint8_t* weights = allocate_huge(kColdBytes + (int64_t{64} << 20));
    uint8_t* scales = allocate_huge(int64_t{160} << 20);
    uint8_t* x = allocate_huge(512 * 4096 * 4);
    uint8_t* x_bf16 = allocate_huge(512 * 4096 * 2);
    uint8_t* out = allocate_huge(int64_t{512} * (151936 + 16) * 4);
    std::vector<float> row_scales = std::vector<float>(512, 0.01f);
    std::vector<int32_t> num_outliers = std::vector<int32_t>(151936 / kLanes, 0);
    std::vector<int32_t> sums = std::vector<int32_t>(512, 0);
    std::vector<uint8_t*> scratch{allocate_huge(kLinearScratch), allocate_huge(kLinearScratch)};
};

Workload make_workload(Memory& memory, Form form, Shape shape, int rows, bool cold) {
    Workload work{};
    Matrix matrix{};
    matrix.dtype = form.dtype;
    matrix.out_features = shape.out;
    matrix.in_features = matrix.padded_in = shape.in;
    matrix.panels = shape.out / kLanes;
    const bool compressed = form.dtype == Dtype::bf16_compressed;
    const int bits = form.dtype == Dtype::f32    ? 32
                     : form.dtype == Dtype::int8 ? 8
                     : form.dtype == Dtype::int4 ? 4
                     : compressed                ? 12
                                                 : 16;
    matrix.panel_bytes = form.dtype == Dtype::int4 ? int64_t{shape.in} * 9 : int64_t{shape.in} * bits * 2;
    const int64_t size = matrix.panels * matrix.panel_bytes;
    const bool scaled = form.dtype == Dtype::int8 || form.dtype == Dtype::int4;
    const int64_t scale_bytes = scaled || compressed ? shape.out * 4 : 0;
    const int64_t count = std::max<int64_t>(1, (cold ? kColdBytes : int64_t{64} << 20) / size);
    for (int64_t i = 0; i < count; ++i) {
        matrix.data = memory.weights + i * size;
        uint8_t* scales = memory.scales + i * scale_bytes;
        if (scaled) matrix.scales = reinterpret_cast<float*>(scales);
        if (compressed) matrix.exponent_bases = scales, matrix.num_outliers = memory.num_outliers.data();
        work.matrices.push_back(matrix);
    }
    work.bytes = count * (size + scale_bytes);
    LinearTask& task = work.task;
    task.rows = rows;
    const int64_t pad = 64;  // bytes: rows at a multiple of 4,096 bytes would compete for a few sets of the first-level cache
    if (form.quantized) {
        int8_t* x = reinterpret_cast<int8_t*>(memory.x);
        task.quantized = {x, shape.in + pad, memory.row_scales.data(), memory.sums.data()};
    } else {
        task.x = {reinterpret_cast<float*>(memory.x), shape.in + pad / 4};
        task.x_bf16 = {reinterpret_cast<uint16_t*>(memory.x_bf16), shape.in + pad / 2};
    }
    task.out = {reinterpret_cast<float*>(memory.out), shape.out + pad / 4};
    return work;
}

struct Seconds {
    double clock, busy;  // busy: mean processor time of a thread
};

double processor_time() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One pass over all matrices.
Seconds run_pass(const Kernels& kernels, const Memory& memory, const Workload& work, int threads) {
    std::atomic<int64_t> next{0};
    std::atomic<int> ready{0};
    std::vector<double> busy(static_cast<size_t>(threads));
    std::vector<LinearTask> tasks;
    std::vector<LinearPartition> partitions;
    std::vector<int64_t> ends;
    for (const Matrix& matrix : work.matrices) {
        LinearTask task = work.task;
        task.matrix = &matrix;
        tasks.push_back(task);
        partitions.push_back(partition_linear(kernels, task, threads));
        ends.push_back((ends.empty() ? 0 : ends.back()) + partitions.back().count());
    }
    auto body = [&](int thread) {
        ++ready;
        while (ready < threads) std::this_thread::yield();
        const double start = processor_time();
        size_t matrix = 0;
        for (int64_t item = next++; item < ends.back(); item = next++) {
            while (item >= ends[matrix]) ++matrix;
            const int64_t first = matrix == 0 ? 0 : ends[matrix - 1];
            run_linear_item(kernels, tasks[matrix], partitions[matrix], item - first, memory.scratch[static_cast<size_t>(thread)]);
        }
        busy[static_cast<size_t>(thread)] = processor_time() - start;
    };
    std::vector<std::thread> workers;
    for (int thread = 1; thread < threads; ++thread) workers.emplace_back(body, thread);
    while (ready < threads - 1) std::this_thread::yield();
    const auto start = std::chrono::steady_clock::now();
    body(0);
    for (std::thread& worker : workers) worker.join();
    const double clock = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double total = 0.0;
    for (const double time : busy) total += time;
    return {clock, total / threads};
}

const Kernels* choose(const std::string& name) {
    if (name == "avx2") return avx2_kernels();
    if (name == "avxvnni") return avxvnni_kernels();
    if (name == "amx") {
        syscall(SYS_arch_prctl, 0x1023L, 18L);  // requests the tile registers
        return amx_kernels();
    }
    return avx512_kernels();
}

void measure(const Kernels& kernels, Memory& memory, Form form, Shape shape, int rows, int rounds) {
    const bool cold = rows <= 32;
    const Workload work = make_workload(memory, form, shape, rows, cold);
    std::printf("%-6s %4d rows %6d x %4d:", form.name, rows, shape.out, shape.in);
    for (int threads = 1; threads <= 2; ++threads) {
        Seconds best{1e9, 1e9};
        for (int round = 0; round < rounds; ++round) {
            const Seconds seconds = run_pass(kernels, memory, work, threads);
            best = {std::min(best.clock, seconds.clock), std::min(best.busy, seconds.busy)};
        }
        const double operations = 2e-9 * rows * shape.out * shape.in * static_cast<double>(work.matrices.size());
        const double gigabytes = static_cast<double>(work.bytes) * 1e-9;
        std::printf("  %dT %6.2f GB/s %7.1f Gop/s (busy %6.2f, %7.1f)", threads, gigabytes / best.clock, operations / best.clock,
                    gigabytes / best.busy, operations / best.busy);
    }
    std::printf("\n");
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const Kernels* kernels = choose(argc > 1 ? argv[1] : "avx512");
    const std::string only = argc > 2 ? argv[2] : "";
    const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
    const int only_rows = argc > 4 ? std::atoi(argv[4]) : 0;
    Memory memory;
    for (const Form& form : kForms) {
        if (!only.empty() && only != "all" && only != form.name) continue;
        for (const int rows : kRowCounts) {
            if (only_rows != 0 && rows != only_rows) continue;
            for (const Shape& shape : kShapes) {
                if (rows > 32 && shape.out > 100000) continue;
                measure(*kernels, memory, form, shape, rows, rounds);
            }
        }
    }
}
