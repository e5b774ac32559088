#include "thread_pool.h"

#include <unistd.h>

#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hasten {

namespace {

void cpu_pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

void EventCount::advance() {
    value_.fetch_add(1);
    // Sequential consistency on both sides: either this thread sees the sleeper, or the sleeper sees the new value.
    if (sleepers_.load() == 0) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }
    changed_.notify_all();
}

void EventCount::wait_while(uint32_t observed) {
    const auto deadline = std::chrono::steady_clock::now() + spin_;
    for (int spins = 1; value() == observed; ++spins) {
        cpu_pause();
        if (spins % 64 == 0 && std::chrono::steady_clock::now() >= deadline) break;
    }
    if (value() != observed) return;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    changed_.wait(lock, [&] { return value_.load() != observed; });
    sleepers_.fetch_sub(1);
}

struct ThreadPool::State {
    explicit State(pid_t process) : process(process) {}

    const pid_t process;
    EventCount work{kIdleSpin}, arrived{kBarrierSpin};
    std::atomic<int> pending{0};  // threads that have not reached the barrier
    // Two alternating counters: while one hands out items the other is idle, and the last thread to arrive resets it.
    std::atomic<int64_t> next_item[2] = {{0}, {0}};
    Job job = nullptr;
    void* context = nullptr;
    bool stopping = false;
    std::vector<std::thread> workers;

    void stop() {
        stopping = true;
        work.advance();
        for (std::thread& worker : workers) worker.join();
    }
};

ThreadPool::ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads), state_(nullptr) { start(); }

ThreadPool::~ThreadPool() {
    if (state_->process != getpid()) return;  // the workers belong to the parent process
    state_->stop();
    delete state_;
}

void ThreadPool::start() {
    auto owner = std::make_unique<State>(getpid());
    State* state = owner.get();
    state->pending = threads_;
    try {
        state->workers.reserve(static_cast<size_t>(threads_));
        for (int thread = 1; thread < threads_; ++thread) {
            state->workers.emplace_back([state, thread, this] {
                for (uint32_t observed = 0;; ++observed) {
                    state->work.wait_while(observed);
                    if (state->stopping) return;
                    state->job(state->context, thread);
                    barrier([] {});
                }
            });
        }
    } catch (...) {
        state->stop();
        throw;
    }
    state_ = owner.release();
}

void ThreadPool::run(Job job, void* context) {
    std::lock_guard<std::mutex> lock(run_mutex_);
    if (state_->process != getpid()) start();
    state_->job = job;
    state_->context = context;
    if (threads_ > 1) state_->work.advance();
    job(context, 0);
    barrier([] {});
}

uint32_t ThreadPool::current_phase() const { return state_->arrived.value(); }

bool ThreadPool::arrive() { return state_->pending.fetch_sub(1) == 1; }

void ThreadPool::release(uint32_t phase) {
    state_->pending.store(threads_);
    state_->next_item[(phase + 1) % 2].store(0);
    state_->arrived.advance();
}

void ThreadPool::wait_while(uint32_t phase) { state_->arrived.wait_while(phase); }

std::atomic<int64_t>& ThreadPool::next_item() { return state_->next_item[state_->arrived.value() % 2]; }

}  // namespace hasten
