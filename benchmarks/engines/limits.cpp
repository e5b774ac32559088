// What the cores of this machine can do at most: stream memory, and multiply in int8, bf16 and fp32 from registers.
// Prints one JSON object. Arguments: threads, megabytes to stream.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using Clock = std::chrono::steady_clock;
typedef float Floats __attribute__((vector_size(64)));
typedef int64_t Line __attribute__((vector_size(64)));

static double seconds_of(int threads, const std::function<void(int)>& body) {
    std::vector<std::thread> running;
    const auto begin = Clock::now();
    for (int t = 0; t < threads; t++) running.emplace_back(body, t);
    for (auto& thread : running) thread.join();
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Bytes per second, the best of several passes over prefetch distances: a limit is what was reached once.
static double stream(int threads, size_t bytes) {
    const size_t huge = 2u << 20;
    bytes = bytes / (huge * threads) * (huge * threads);
    char* whole =
        static_cast<char*>(mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (whole == MAP_FAILED) return 0;
    char* data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(whole) + huge - 1) / huge * huge);
#if defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    memset(data, 1, bytes);
    double best = 0;
    for (size_t ahead : {0, 1024, 2048, 4096, 8192}) {
        for (int repeat = 0; repeat < 4; repeat++) {
            const double taken = seconds_of(threads, [=](int t) {
                const char* from = data + bytes / threads * t;
                const char* to = from + bytes / threads;
                Line sums[4] = {};
                for (const char* at = from; at < to; at += 256) {
                    for (int i = 0; i < 4; i++) {
                        if (ahead) __builtin_prefetch(at + ahead + 64 * i);
                        sums[i] += *reinterpret_cast<const Line*>(at + 64 * i);
                    }
                }
                volatile int64_t kept = (sums[0] + sums[1] + sums[2] + sums[3])[0];
                (void)kept;
            });
            best = std::max(best, bytes / taken);
        }
    }
    munmap(whole, bytes + huge);
    return best;
}

static const long ROUNDS = 4000000;
static const int CHAINS = 12;  // independent sums, enough to hide the latency of one

// Operations per second of `body`, which does `ops` of them; the best of three.
static double rate(int threads, double ops, const std::function<void(int)>& body) {
    double best = 0;
    for (int repeat = 0; repeat < 3; repeat++) best = std::max(best, threads * ops / seconds_of(threads, body));
    return best;
}

static double fp32(int threads) {
    return rate(threads, 2.0 * 16 * CHAINS * ROUNDS, [](int t) {
        Floats sums[CHAINS], x = {}, y = {};
        x += t + 0.5f;
        y += 0.3f;
        for (auto& sum : sums) sum = x;
        for (long i = 0; i < ROUNDS; i++) {
            for (auto& sum : sums) sum += x * y;
            // The product must not be hoisted out of the loop.
#if defined(__AVX512F__)
            asm volatile("" : "+v"(x));
#else
      asm volatile("" : "+m"(x));
#endif
        }
        for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
        volatile float kept = sums[0][0];
        (void)kept;
    });
}

#if defined(__AVX2__)
static double avx2_int8(int threads) {
    return rate(threads, 2.0 * 32 * CHAINS * ROUNDS, [](int t) {
        __m256i sums[CHAINS], x = _mm256_set1_epi8(char(t + 1)), y = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
        for (auto& sum : sums) sum = x;
        for (long i = 0; i < ROUNDS; i++) {
            for (auto& sum : sums) {
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
                asm volatile("" : "+x"(x));
            }
        }
        for (int i = 1; i < CHAINS; i++) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
        volatile int kept = _mm256_cvtsi256_si32(sums[0]);
        (void)kept;
    });
}
#endif

#if defined(__AVX512VNNI__)
static double vnni(int threads) {
    return rate(threads, 2.0 * 64 * CHAINS * ROUNDS, [](int t) {
        __m512i sums[CHAINS], x = _mm512_set1_epi8(char(t + 1)), y = _mm512_set1_epi8(3);
        for (auto& sum : sums) sum = x;
        for (long i = 0; i < ROUNDS; i++) {
            for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, x, y);
            asm volatile("" : "+v"(x));
        }
        for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
        volatile int kept = _mm512_cvtsi512_si32(sums[0]);
        (void)kept;
    });
}
#endif

#if defined(__AVX512BF16__)
static double avx512_bf16(int threads) {
    return rate(threads, 2.0 * 32 * CHAINS * ROUNDS, [](int t) {
        __m512 sums[CHAINS];
        __m512i x = _mm512_set1_epi16(short(0x3f80 + t)), y = _mm512_set1_epi16(0x3f00);
        for (auto& sum : sums) sum = _mm512_setzero_ps();
        for (long i = 0; i < ROUNDS; i++) {
            for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
            asm volatile("" : "+v"(x));
        }
        for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
        volatile float kept = _mm512_cvtss_f32(sums[0]);
        (void)kept;
    });
}
#endif

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
static bool amx_allowed() {
    const int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

struct alignas(64) TileShape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <bool INT8>
static double amx(int threads) {
    const double multiplications = 16 * 16 * (INT8 ? 64 : 32);
    return rate(threads, 2 * multiplications * 4 * (ROUNDS / 4), [](int) {
        TileShape shape;
        alignas(64) char ones[1024];
        memset(ones, 1, sizeof ones);
        _tile_loadconfig(&shape);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(4, ones, 64);
        _tile_loadd(5, ones, 64);
        _tile_loadd(6, ones, 64);
        _tile_loadd(7, ones, 64);
        for (long i = 0; i < ROUNDS / 4; i++) {
            if (INT8) {
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            } else {
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, ones, 64);
        _tile_release();
    });
}
#endif

int main(int count, char** arguments) {
    const int threads = count > 1 ? atoi(arguments[1]) : 2;
    const size_t megabytes = count > 2 ? strtoull(arguments[2], nullptr, 10) : 1024;
    const double floats = fp32(threads);
    double int8 = floats, bf16 = floats;
    const char *int8_unit = "fp32", *bf16_unit = "fp32";
#if defined(__AVX2__)
    int8 = avx2_int8(threads), int8_unit = "AVX2";
#endif
#if defined(__AVX512VNNI__)
    int8 = vnni(threads), int8_unit = "AVX-512 VNNI";
#endif
#if defined(__AVX512BF16__)
    bf16 = avx512_bf16(threads), bf16_unit = "AVX-512 BF16";
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    if (amx_allowed()) {
        int8 = amx<true>(threads), int8_unit = "AMX";
        bf16 = amx<false>(threads), bf16_unit = "AMX";
    }
#endif
    printf(
        "{\"bytes_per_second\": %.4g, \"fp32\": %.4g, \"bf16\": %.4g, \"bf16_unit\": \"%s\", \"int8\": %.4g, \"int8_unit\": "
        "\"%s\"}\n",
        stream(threads, megabytes << 20), floats, bf16, bf16_unit, int8, int8_unit);
}
