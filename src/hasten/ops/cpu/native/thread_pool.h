// A persistent thread pool: the caller and its workers run one job together, with barriers inside the job.
//
// A waiting thread spins for a while and then sleeps. After a fork the child process starts its own workers.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace hasten {

// Inside a job the other threads arrive soon, unless they have lost their core to another process. Between jobs workers spin for as
// long as sampling takes, since waking a virtual CPU may take longer than a job.
constexpr std::chrono::microseconds kBarrierSpin{50}, kIdleSpin{1000};

// An event count: a counter whose changes threads can wait for.
class EventCount {
public:
    explicit EventCount(std::chrono::microseconds spin) : spin_(spin) {}

    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void advance();
    void wait_while(uint32_t observed);  // returns when value() != observed

private:
    const std::chrono::microseconds spin_;  // spins for this long before sleeping
    std::atomic<uint32_t> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

class ThreadPool {
public:
    using Job = void (*)(void* context, int thread);

    // Throws std::system_error, and leaves no thread behind, if the system refuses one. So does the first run after a fork.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }

    // Runs job(context, thread) for all threads, of which thread 0 is the caller. Returns when all have finished. Concurrent runs
    // queue.
    void run(Job job, void* context);

    // A barrier inside a job, for every thread. The last thread to arrive runs `completion` before any thread continues.
    template <class Completion>
    void barrier(Completion completion) {
        const uint32_t phase = current_phase();
        if (arrive()) {
            completion();
            release(phase);
        } else {
            wait_while(phase);
        }
    }

    // A parallel loop inside a job, called by every thread. Runs body(item) once for each item in [0, items), scheduled
    // dynamically. Ends with a barrier in which one thread runs completion().
    template <class Body, class Completion>
    void parallel_for(int64_t items, Body body, Completion completion) {
        std::atomic<int64_t>& next = next_item();
        for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
             item = next.fetch_add(1, std::memory_order_relaxed)) {
            body(item);
        }
        barrier(completion);
    }

private:
    struct State;

    void start();
    uint32_t current_phase() const;
    bool arrive();  // true for the last thread
    void release(uint32_t phase);
    void wait_while(uint32_t phase);
    std::atomic<int64_t>& next_item();

    const int threads_;
    State* state_;  // a forked child replaces it and leaks the old one, whose locks may be held by threads that no longer exist
    std::mutex run_mutex_;
};

}  // namespace hasten
