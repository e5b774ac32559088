#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace hasten {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPiece = size_t{64} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// A mapping that begins at a multiple of the huge page, or null.
unsigned char* map(size_t bytes) {
    void* found = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    auto* begin = static_cast<unsigned char*>(found);
    const size_t skip = round_up(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
    if (skip > 0) munmap(begin, skip);
    if (skip < kHugePage) munmap(begin + skip + bytes, kHugePage - skip);
#ifdef MADV_HUGEPAGE
    madvise(begin + skip, bytes, MADV_HUGEPAGE);  // a wish: without huge pages everything still works
#endif
    return begin + skip;
}

}  // namespace

Arena::~Arena() {
    for (const Piece& piece : pieces_) munmap(piece.data, piece.size);
}

void* Arena::take(size_t bytes) {
    const size_t wanted = round_up(bytes ? bytes : 1, 64);
    std::lock_guard<std::mutex> lock(mutex_);
    if (pieces_.empty() || pieces_.back().size - pieces_.back().used < wanted) {
        const size_t size = round_up(wanted > kPiece ? wanted : kPiece, kHugePage);
        unsigned char* data = map(size);
        if (data == nullptr) return nullptr;
        pieces_.push_back({data, size, 0});
    }
    Piece& piece = pieces_.back();
    void* taken = piece.data + piece.used;
    piece.used += wanted;
    taken_ += wanted;
    return taken;
}

void Arena::forget(void* data, size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), address = reinterpret_cast<uintptr_t>(data);
    const size_t begin = round_up(address, page), end = (address + bytes) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    std::lock_guard<std::mutex> lock(mutex_);
    taken_ -= round_up(bytes, 64);
}

}  // namespace hasten
