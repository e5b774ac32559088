// Memory in large pieces, zeroed by the system as it is first touched and backed by huge pages where they exist.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace hasten {

// Hands out 64-byte aligned memory and frees all of it at once.
class Arena {
public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Zeroed. Null when the system refuses.
    void* take(size_t bytes);
    // The memory of one `take` is not needed any more: its pages go back to the system.
    void forget(void* data, size_t bytes);
    size_t bytes() const { return taken_; }

private:
    struct Piece {
        unsigned char* data;
        size_t size, used;
    };

    std::mutex mutex_;
    std::vector<Piece> pieces_;
    size_t taken_ = 0;
};

}  // namespace hasten
