// What the handles of the C interface stand for.
#pragma once

#include <algorithm>
#include <cassert>
#include <memory>
#include <mutex>
#include <vector>

#include "hasten.h"
#include "program.h"

namespace hasten {

// What one product outside of programs needs. It is kept: mapping and touching new memory costs more than a small product.
class EagerMemory {
public:
    // Begins again with at least so many bytes, which are not zero. False when memory is refused.
    bool begin(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        arena_ = std::make_unique<Arena>();
        data_ = static_cast<unsigned char*>(arena_->take(static_cast<size_t>(bytes)));
        size_ = data_ == nullptr ? 0 : bytes;
        return data_ != nullptr;
    }
    // Gives back what only few products need.
    void end() {
        if (size_ <= kKept) return;
        arena_.reset();
        size_ = 0;
    }
    template <class T>
    T* take(int64_t count) {
        T* found = reinterpret_cast<T*>(data_ + used_);
        used_ += round_up(count * int64_t{sizeof(T)}, int64_t{64});
        assert(used_ <= size_);
        return found;
    }

private:
    static constexpr int64_t kKept = int64_t{64} << 20;
    std::unique_ptr<Arena> arena_;
    unsigned char* data_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace hasten

struct hasten_cpu {
    hasten_cpu(const hasten::Kernels& kernels, int threads) : kernels(kernels), threads(threads) {}
    const hasten::Kernels& kernels;
    hasten::ThreadPool threads;
    hasten::Arena memory;
    std::vector<void*> scratch;  // per thread, for the calls outside programs
    std::mutex one_product;
    hasten::EagerMemory eager;
};

struct hasten_matrix {
    hasten::Matrix matrix;
    hasten::Arena* arena;
};

struct hasten_weights {
    hasten::Arena arena;
    std::vector<std::unique_ptr<hasten_matrix>> matrices;
};

struct hasten_kv {
    hasten::KvPool pool;
};

struct hasten_program {
    hasten::Program program;
    std::mutex one_run;
};

// Runs body(item, thread) for items [0, count) on all threads of the cpu.
template <class Body>
void share(hasten_cpu* cpu, int64_t count, Body body) {
    struct Context {
        hasten_cpu* cpu;
        int64_t count;
        Body* body;
    } context{cpu, count, &body};
    cpu->threads.run(
        [](void* raw, int thread) {
            auto* given = static_cast<Context*>(raw);
            given->cpu->threads.share(given->count, [&](int64_t item) { (*given->body)(item, thread); }, [] {});
        },
        &context);
}
