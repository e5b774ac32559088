// Runs all registered tests, or those whose names contain the first argument.
#include <cpuid.h>

#include "test_harness.h"

#if defined(__linux__) && !defined(HASTEN_EMULATE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace check {

Test*& tests() {
    static Test* first = nullptr;
    return first;
}

int& failures() {
    static int count = 0;
    return count;
}

void fail(const char* file, int line, const char* what, double got, double want) {
    if (++failures() <= 5) std::printf("  %s:%d: %s: got %.9g, want %.9g\n", file, line, what, got, want);
}

namespace {

bool has_avxvnni() {
#ifdef HASTEN_EMULATE_AVXVNNI
    return true;
#else
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
#endif
}

bool has_avx512() {
#ifdef HASTEN_EMULATE_AVX512
    return true;
#else
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
}

// The emulation of AMX needs AVX-512 only. Without it the processor must have tiles and the system must permit them.
bool has_amx() {
#ifdef HASTEN_EMULATE_AMX
    return has_avx512();
#elif defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return has_avx512() && __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

struct Available {
    const hasten::Kernels* table[4];
    int count = 0;
    Available() {
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) table[count++] = hasten::avx2_kernels();
        if (has_avxvnni()) table[count++] = hasten::avxvnni_kernels();
        if (has_avx512()) table[count++] = hasten::avx512_kernels();
        if (has_amx()) table[count++] = hasten::amx_kernels();
    }
};

const Available& available() {
    static const Available found;
    return found;
}

}  // namespace

int count_isas() { return available().count; }
const hasten::Kernels* isa(int index) { return available().table[index]; }

}  // namespace check

int main(int argc, char** argv) {
    int passed = 0, failed = 0;
    std::printf("instruction sets:");
    check::for_each_isa([](const hasten::Kernels& kernels) { std::printf(" %s", kernels.name); });
    std::printf("\n");
    for (const check::Test* test = check::tests(); test != nullptr; test = test->next) {
        if (argc > 1 && std::strstr(test->name, argv[1]) == nullptr) continue;
        check::failures() = 0;
        test->body();
        const bool ok = check::failures() == 0;
        if (!ok) std::printf("FAILED %s (%d checks)\n", test->name, check::failures());
        ++(ok ? passed : failed);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
