#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace hasten {

namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr size_t kChunkBytes = size_t{64} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Returns a mapping aligned to the huge page size, or null.
unsigned char* map(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    void* address =
        mmap(nullptr, bytes + kHugePageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    auto* begin = static_cast<unsigned char*>(address);
    const size_t padding = round_up(reinterpret_cast<uintptr_t>(begin), kHugePageBytes) - reinterpret_cast<uintptr_t>(begin);
    if (padding > 0) munmap(begin, padding);
    if (padding < kHugePageBytes) munmap(begin + padding + bytes, kHugePageBytes - padding);
#ifdef MADV_HUGEPAGE
    madvise(begin + padding, bytes, MADV_HUGEPAGE);  // a hint: the memory works without huge pages too
#endif
    return begin + padding;
}

}  // namespace

Arena::~Arena() {
    for (const Chunk& chunk : chunks_) munmap(chunk.data, chunk.size);
}

void* Arena::allocate(size_t bytes) {
    const size_t aligned = round_up(bytes ? bytes : 1, 64);
    std::lock_guard<std::mutex> lock(mutex_);
    if (chunks_.empty() || chunks_.back().size - chunks_.back().used < aligned) {
        const size_t size = round_up(aligned > kChunkBytes ? aligned : kChunkBytes, kHugePageBytes);
        unsigned char* data = map(size);
        if (data == nullptr) return nullptr;
        chunks_.push_back({data, size, 0});
    }
    Chunk& chunk = chunks_.back();
    void* result = chunk.data + chunk.used;
    chunk.used += aligned;
    allocated_ += aligned;
    return result;
}

void Arena::release(void* data, size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), address = reinterpret_cast<uintptr_t>(data);
    const size_t begin = round_up(address, page), end = (address + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    std::lock_guard<std::mutex> lock(mutex_);
    allocated_ -= round_up(bytes, 64);
}

}  // namespace hasten
