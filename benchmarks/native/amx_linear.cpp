// Speed of products in AMX tiles on one core, separated by the load of its other hyper-thread.
//
// A core whose other hyper-thread is busy multiplies tiles at a quarter of its speed, for milliseconds or minutes. So a probe loop
// of tiles in the first-level cache is timed before and after every work item. An item counts if both times agree that the core was
// exclusive, or shared. Then two builds are comparable, although no two runs have the same load. Link with the objects of the
// kernels, like linear.cpp; needs -mamx-tile -mamx-int8. Pin it to a core:
//
//   taskset -c 1 amx_linear [form: int8, int4, bf16, bf16c] [rows] [passes] [out] [in]
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define HASTEN_ISA bench
#include "../../src/hasten/ops/cpu/native/matrix.h"
#include "../../src/hasten/ops/cpu/native/simd/amx.h"
#include "huge_pages.h"

using namespace hasten;

namespace {

constexpr int64_t kWeightBytes = int64_t{300} << 20;  // more than the second-level cache
// Operations per second of int8 that are certain to be exclusive (above) or shared (below).
constexpr double kExclusive = 3.2e12, kShared = 1.9e12;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Operations per second of tiles in the first-level cache.
double probe(const uint8_t* data) {
    bench::configure_tiles(bench::kAmxTileRows, bench::kAmxTileRows, 64);
    const double begin = now();
    for (int i = 0; i < 60; ++i) {
        _tile_loadd(4, data, 64);
        _tile_loadd(6, data + 1024, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(5, data + 2048, 64);
        _tile_dpbusd(2, 5, 6);
        _tile_loadd(7, data + 3072, 64);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(3, 5, 7);
    }
    const double seconds = now() - begin;
    _tile_release();
    return 60 * 4 * 32768 / seconds;
}

struct Form {
    const char* name;
    Dtype dtype;
    int64_t bytes;  // of a panel, for each input
};
constexpr Form kForms[] = {
    {"int8", Dtype::int8, 16}, {"int4", Dtype::int4, 9}, {"bf16", Dtype::bf16, 32}, {"bf16c", Dtype::bf16_compressed, 24}};

void report(const char* state, std::vector<double>& seconds, double operations, double bytes) {
    if (seconds.empty()) return;
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2], quick = seconds[seconds.size() / 10];
    std::printf("  %s: %6.0f Gop/s, %5.2f GB/s (a tenth of %zu items above %.0f Gop/s)", state, operations / median * 1e-9,
                bytes / median * 1e-9, seconds.size(), operations / quick * 1e-9);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string name = argc > 1 ? argv[1] : "int8";
    const int32_t rows = argc > 2 ? std::atoi(argv[2]) : 512, passes = argc > 3 ? std::atoi(argv[3]) : 60;
    const int32_t out = argc > 4 ? std::atoi(argv[4]) : 6144, in = argc > 5 ? std::atoi(argv[5]) : 1024;
    const Form* form = std::find_if(std::begin(kForms), std::end(kForms), [&](const Form& f) { return name == f.name; });
    if (form == std::end(kForms) || rows < 1 || out % 32 != 0 || in % 64 != 0) {
        std::fprintf(stderr, "amx_linear [int8, int4, bf16, bf16c] [rows] [passes] [out, a multiple of 32] [in, of 64]\n");
        return 2;
    }
    syscall(SYS_arch_prctl, 0x1023L, 18L);  // requests the tile registers
    const bool quantized = form->dtype == Dtype::int8 || form->dtype == Dtype::int4;
    Matrix matrix{};
    matrix.dtype = form->dtype;
    matrix.out_features = out;
    matrix.in_features = matrix.padded_in = in;
    matrix.panels = out / kLanes;
    matrix.panel_bytes = in * form->bytes;
    const int64_t bytes = matrix.panels * matrix.panel_bytes, count = std::max<int64_t>(1, kWeightBytes / bytes);
    std::vector<float> scales(static_cast<size_t>(out), 1e-4f), row_scales(static_cast<size_t>(rows), 1e-3f);
    std::vector<int32_t> sums(static_cast<size_t>(rows), 0), outliers(static_cast<size_t>(matrix.panels), 0);
    if (quantized) matrix.scales = scales.data();
    matrix.exponent_bases = allocate_huge(int64_t{out} * 4);
    matrix.num_outliers = outliers.data();
    uint8_t *weights = allocate_huge(count * bytes), *x = allocate_huge(int64_t{rows} * (in * 2 + 64)), *data = allocate_huge(4096);
    LinearTask task{};
    task.rows = rows;
    if (quantized)
        task.quantized = {reinterpret_cast<int8_t*>(x), in + 64, row_scales.data(), sums.data()};
    else
        task.x_bf16 = {reinterpret_cast<uint16_t*>(x), in + 32};
    task.out = {reinterpret_cast<float*>(allocate_huge(int64_t{rows} * (out + 16) * 4)), out + 16};
    void* scratch = allocate_huge(kLinearScratch);
    std::vector<double> exclusive, shared;
    for (int pass = 0; pass < passes; ++pass) {
        matrix.data = weights + pass % count * bytes;
        task.matrix = &matrix;
        const LinearPartition partition = partition_linear(*amx_kernels(), task, 2);
        for (int64_t item = 0; item < partition.count(); ++item) {
            const double before = probe(data), begin = now();
            run_linear_item(*amx_kernels(), task, partition, item, scratch);
            const double seconds = (now() - begin) * static_cast<double>(partition.count()), after = probe(data);
            if (std::min(before, after) > kExclusive) exclusive.push_back(seconds);
            if (std::max(before, after) < kShared) shared.push_back(seconds);
        }
    }
    const double operations = 2.0 * rows * out * in;
    std::printf("%-5s %d rows x %d x %d", form->name, rows, out, in);
    report("exclusive", exclusive, operations, static_cast<double>(bytes));
    report("shared", shared, operations, static_cast<double>(bytes));
    std::printf("\n");
}
