// Memory allocation of the benchmarks.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

// Allocates huge pages where available and touches every small page.
inline uint8_t* allocate_huge(int64_t bytes) {
    const int64_t page = int64_t{2} << 20;
    const size_t size = static_cast<size_t>((bytes + page - 1) / page * page + page);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    madvise(memory, size, MADV_HUGEPAGE);
    const uintptr_t mask = static_cast<uintptr_t>(page) - 1;
    uint8_t* data = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + mask) & ~mask);
    for (int64_t i = 0; i < bytes; i += 4096) data[i] = static_cast<uint8_t>(i >> 12);
    return data;
}
