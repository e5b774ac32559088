// A persistent pool: the caller and its helpers run the same job together, with barriers inside.
//
// Whoever waits spins for a while and then sleeps. After a fork the child starts helpers of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace hasten {

// Inside a job the others are about to arrive, or have lost their core to somebody who needs ours as well. Between jobs helpers
// wait for as long as choosing tokens takes: on a virtual machine a processor that has slept may take longer to wake than a job
// runs.
constexpr std::chrono::microseconds kBarrierSpin{50}, kIdleSpin{1000};

// A counter that threads wait on until it moves.
class Signal {
public:
    explicit Signal(std::chrono::microseconds spin) : spin_(spin) {}

    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void advance();
    void wait_beyond(uint32_t seen);  // until value() != seen

private:
    const std::chrono::microseconds spin_;  // before it sleeps
    std::atomic<uint32_t> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable moved_;
};

class ThreadPool {
public:
    using Job = void (*)(void* context, int thread);

    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }

    // job(context, 0 .. threads - 1), thread 0 being the caller; returns when all have ended. One run at a time: others queue.
    void run(Job job, void* context);

    // Inside a job, reached by every thread: nobody passes before all have arrived and the last to arrive has run `alone`.
    template <class Alone>
    void barrier(Alone alone) {
        const uint32_t phase = current_phase();
        if (arrive()) {
            alone();
            open(phase);
        } else {
            wait_beyond(phase);
        }
    }

    // Inside a job, by every thread: calls body(item) for each item in [0, items) once, on whichever thread is free; after all
    // of them, alone() once, on one thread; then all go on.
    template <class Body, class Alone>
    void share(int64_t items, Body body, Alone alone) {
        std::atomic<int64_t>& next = next_item();
        for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
             item = next.fetch_add(1, std::memory_order_relaxed)) {
            body(item);
        }
        barrier(alone);
    }

private:
    struct State;

    void start();
    uint32_t current_phase() const;
    bool arrive();  // true for the last
    void open(uint32_t phase);
    void wait_beyond(uint32_t phase);
    std::atomic<int64_t>& next_item();

    const int threads_;
    State* state_;  // replaced, and the old one left alone, in a forked child: its locks may be held by threads that are gone
    std::mutex one_run_;
};

}  // namespace hasten
