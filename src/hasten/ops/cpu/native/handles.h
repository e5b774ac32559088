// The objects behind the opaque handles of the C interface, and the parallel loop of calls outside programs.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <vector>

#include "hasten.h"
#include "program.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hasten {

// Floating point as C++ starts it, for as long as this lives: rounded to nearest, with subnormal numbers. The caller's thread may
// flush these to zero (torch.set_flush_denormal), which the kernels take for FP8 numbers. Threads begin with the mode of their
// maker.
class DefaultFloats {
#if defined(__x86_64__)
public:
    DefaultFloats() { _mm_setcsr(0x1f80); }
    ~DefaultFloats() { _mm_setcsr(callers_mode_); }
    DefaultFloats(const DefaultFloats&) = delete;
    DefaultFloats& operator=(const DefaultFloats&) = delete;

private:
    const unsigned callers_mode_ = _mm_getcsr();
#endif
};

// Memory of one product outside programs. It is reused, since mapping and touching new memory costs more than a small product.
class Workspace {
public:
    // Discards the contents and ensures `bytes` bytes, uninitialised. Returns false when out of memory.
    bool reserve(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        arena_ = std::make_unique<Arena>();
        data_ = static_cast<unsigned char*>(arena_->allocate(static_cast<size_t>(bytes)));
        size_ = data_ == nullptr ? 0 : bytes;
        return data_ != nullptr;
    }
    // Frees a workspace larger than kMaxRetainedBytes, which few products need.
    void trim() {
        if (size_ <= kMaxRetainedBytes) return;
        arena_.reset();
        size_ = 0;
    }
    // Throws std::bad_alloc past the reserved bytes.
    template <class T>
    T* allocate(int64_t count) {
        T* data = reinterpret_cast<T*>(data_ + used_);
        used_ += round_up(count * int64_t{sizeof(T)}, int64_t{64});
        if (used_ > size_) throw std::bad_alloc();
        return data;
    }

private:
    static constexpr int64_t kMaxRetainedBytes = int64_t{64} << 20;
    std::unique_ptr<Arena> arena_;
    unsigned char* data_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

// Runs the body of a function of the C interface, which no exception may leave. Returns its result, or an error.
template <class Body>
auto guarded(Body body) noexcept -> decltype(body()) {
    const DefaultFloats floats;
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return HASTEN_OUT_OF_MEMORY;
    } catch (const std::system_error&) {  // only threads raise it
        return HASTEN_NO_THREADS;
    } catch (...) {
        return HASTEN_FAILED;
    }
}

// Whether low <= value <= high.
constexpr bool in_range(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

}  // namespace hasten

struct hasten_cpu {
    hasten_cpu(const hasten::Kernels& kernels, int threads) : kernels(kernels), threads(threads) {}
    const hasten::Kernels& kernels;
    hasten::ThreadPool threads;
    hasten::Arena memory;
    std::vector<void*> scratch;  // per thread, for calls outside programs
    std::mutex workspace_mutex;
    hasten::Workspace workspace;
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
    std::mutex run_mutex;
};

// Runs body(item, thread) for items [0, count) on all threads of the cpu.
template <class Body>
void parallel_for(hasten_cpu* cpu, int64_t count, Body body) {
    struct Context {
        hasten_cpu* cpu;
        int64_t count;
        Body* body;
    } context{cpu, count, &body};
    cpu->threads.run(
        [](void* raw, int thread) {
            auto* task = static_cast<Context*>(raw);
            task->cpu->threads.parallel_for(task->count, [&](int64_t item) { (*task->body)(item, thread); }, [] {});
        },
        &context);
}
