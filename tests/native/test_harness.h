// A small test harness: TEST(name) { ... } registers a test. CHECK and CHECK_CLOSE report file, line and values of a failure and
// continue. `Random` has a fixed seed, so that failures are reproducible.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "../../src/hasten/ops/cpu/native/kernels.h"

namespace check {

struct Test {
    const char* name;
    void (*body)();
    Test* next;
};

Test*& tests();
int& failures();  // of the running test

struct Registration {
    Test test;
    Registration(const char* name, void (*body)()) : test{name, body, nullptr} {
        Test** last = &tests();
        while (*last != nullptr) last = &(*last)->next;
        *last = &test;
    }
};

// Records one failure. Only the first few of a test are printed.
void fail(const char* file, int line, const char* what, double got, double want);

// |got - want| <= tolerance * max(|want|, floor); NaN is never close.
inline bool close(double got, double want, double tolerance, double floor = 1.0) {
    return std::fabs(got - want) <= tolerance * std::fmax(std::fabs(want), floor);
}

// SplitMix64.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // An integer in [low, high].
    int integer(int low, int high) { return low + static_cast<int>(bits() % static_cast<uint64_t>(high - low + 1)); }
    bool coin() { return (bits() & 1) != 0; }
    float uniform(float low, float high) { return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f; }
    // Approximately normal, with mean 0 and variance 1.
    float normal() {
        float total = 0.0f;
        for (int i = 0; i < 12; ++i) total += uniform(-0.5f, 0.5f);
        return total;
    }

private:
    uint64_t state_;
};

// Zeroed memory with 64-byte alignment and exactly the requested size, so that AddressSanitizer detects an overrun of one element.
template <class T>
class Buffer {
public:
    explicit Buffer(int64_t count) : count_(count), data_(static_cast<T*>(::operator new(bytes(), std::align_val_t{64}))) {
        std::memset(static_cast<void*>(data_), 0, bytes());
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    int64_t count() const { return count_; }
    size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
    bool same(const Buffer& other) const { return bytes() == other.bytes() && std::memcmp(data_, other.data_, bytes()) == 0; }

private:
    int64_t count_;
    T* data_;
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

// Rounded to nearest, ties to even.
inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE half precision, by the compiler's conversion.
inline float from_f16(uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}
inline uint16_t to_f16(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

// Calls body(kernels) for every instruction set that was built and that this processor supports.
int count_isas();
const hasten::Kernels* isa(int index);
template <class Body>
void for_each_isa(Body body) {
    for (int i = 0; i < count_isas(); ++i) body(*isa(i));
}

}  // namespace check

#define TEST(name)                                                  \
    static void test_##name();                                      \
    static check::Registration register_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) check::fail(__FILE__, __LINE__, #condition, 0.0, 1.0); \
    } while (0)

#define CHECK_CLOSE(got, want, ...)                                                                      \
    do {                                                                                                 \
        const double got_ = (got), want_ = (want);                                                       \
        if (!check::close(got_, want_, __VA_ARGS__)) check::fail(__FILE__, __LINE__, #got, got_, want_); \
    } while (0)
