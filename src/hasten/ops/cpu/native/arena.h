// Memory in large chunks, zeroed by the system on first touch and backed by huge pages where available.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace hasten {

// Allocates 64-byte aligned memory and frees all of it at once.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Returns zeroed memory, or null when out of memory.
    void* allocate(size_t bytes);
    // Returns the pages of one allocation to the system.
    void release(void* data, size_t bytes);
    size_t bytes() const { return allocated_; }

private:
    struct Chunk {
        unsigned char* data;
        size_t size, used;
    };

    std::mutex mutex_;
    std::vector<Chunk> chunks_;
    size_t allocated_ = 0;
};

}  // namespace hasten
