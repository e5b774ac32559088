#include "isa_dispatch.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>

namespace hasten {

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool has_avxvnni() {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

// Linux enables the tile registers for a process only on request (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool request_tile_permission() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool has_amx() {
    if (!has_avx512()) return false;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return false;  // AVX512-BF16
    static const bool permitted = request_tile_permission();
    return permitted;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    if (std::strcmp(name, "amx") == 0) return has_amx() ? amx_kernels() : nullptr;
    if (std::strcmp(name, "avx512") == 0) return has_avx512() ? avx512_kernels() : nullptr;
    if (std::strcmp(name, "avxvnni") == 0) return has_avxvnni() ? avxvnni_kernels() : nullptr;
    if (std::strcmp(name, "avx2") == 0) return has_avx2() ? avx2_kernels() : nullptr;
    return nullptr;
}

const Kernels* fastest_kernels() {
    for (const char* name : {"amx", "avx512", "avxvnni", "avx2"}) {
        if (const Kernels* kernels = find_kernels(name)) return kernels;
    }
    return nullptr;
}

}  // namespace hasten
