#include "thread_pool.h"

#include <unistd.h>

#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hasten {

namespace {

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

void Signal::advance() {
    value_.fetch_add(1);
    // Sequentially consistent on both sides: either we see the sleeper, or it sees the new value.
    if (sleepers_.load() == 0) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }
    moved_.notify_all();
}

void Signal::wait_beyond(uint32_t seen) {
    const auto patience = std::chrono::steady_clock::now() + spin_;
    for (int turn = 1; value() == seen; ++turn) {
        relax();
        if (turn % 64 == 0 && std::chrono::steady_clock::now() >= patience) break;
    }
    if (value() != seen) return;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    moved_.wait(lock, [&] { return value_.load() != seen; });
    sleepers_.fetch_sub(1);
}

struct ThreadPool::State {
    explicit State(pid_t process) : process(process) {}

    const pid_t process;
    Signal work{kIdleSpin}, arrived{kBarrierSpin};
    std::atomic<int> missing{0};  // threads that have not reached the barrier
    // Two counters in turn: while one hands out items, nobody touches the other, and the last to arrive resets it.
    std::atomic<int64_t> next[2] = {{0}, {0}};
    Job job = nullptr;
    void* context = nullptr;
    bool ending = false;
    std::vector<std::thread> helpers;
};

ThreadPool::ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads), state_(nullptr) { start(); }

ThreadPool::~ThreadPool() {
    if (state_->process != getpid()) return;  // the helpers are our parent's
    state_->ending = true;
    state_->work.advance();
    for (std::thread& helper : state_->helpers) helper.join();
    delete state_;
}

void ThreadPool::start() {
    State* state = new State(getpid());
    state->missing = threads_;
    state_ = state;
    for (int thread = 1; thread < threads_; ++thread) {
        state->helpers.emplace_back([state, thread, this] {
            for (uint32_t seen = 0;; ++seen) {
                state->work.wait_beyond(seen);
                if (state->ending) return;
                state->job(state->context, thread);
                barrier([] {});
            }
        });
    }
}

void ThreadPool::run(Job job, void* context) {
    std::lock_guard<std::mutex> lock(one_run_);
    if (state_->process != getpid()) start();
    state_->job = job;
    state_->context = context;
    if (threads_ > 1) state_->work.advance();
    job(context, 0);
    barrier([] {});
}

uint32_t ThreadPool::current_phase() const { return state_->arrived.value(); }

bool ThreadPool::arrive() { return state_->missing.fetch_sub(1) == 1; }

void ThreadPool::open(uint32_t phase) {
    state_->missing.store(threads_);
    state_->next[(phase + 1) % 2].store(0);
    state_->arrived.advance();
}

void ThreadPool::wait_beyond(uint32_t phase) { state_->arrived.wait_beyond(phase); }

std::atomic<int64_t>& ThreadPool::next_item() { return state_->next[state_->arrived.value() % 2]; }

}  // namespace hasten
