// Software prefetch.
//
// Inline assembly, since GCC takes a function with only __builtin_prefetch for one without effect and drops its calls.
#pragma once

namespace hasten::HASTEN_ISA {

// Into the first-level cache.
[[gnu::always_inline]] inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" ::"m"(*static_cast<const char*>(p))); }

// Into the second-level cache, which supports more outstanding misses.
[[gnu::always_inline]] inline void prefetch_far(const void* p) {
    asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(p)));
}

// Into the first-level cache for writing. Processors without prefetchw ignore it.
[[gnu::always_inline]] inline void prefetch_to_write(const void* p) {
    asm volatile("prefetchw %0" ::"m"(*static_cast<const char*>(p)));
}

}  // namespace hasten::HASTEN_ISA
