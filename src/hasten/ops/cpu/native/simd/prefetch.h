// Asking for memory before it is needed.
//
// As assembly, which the compiler must keep: GCC takes a function that does nothing but __builtin_prefetch for one without effect,
// and leaves out the calls of it.
#pragma once

namespace hasten::HASTEN_ISA {

// Into the first-level cache.
[[gnu::always_inline]] inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" ::"m"(*static_cast<const char*>(p))); }

// Into the second-level cache, which can wait for more lines at once.
[[gnu::always_inline]] inline void prefetch_far(const void* p) {
    asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(p)));
}

// Into the first-level cache, to be written. Processors that do not know it do nothing.
[[gnu::always_inline]] inline void prefetch_to_write(const void* p) {
    asm volatile("prefetchw %0" ::"m"(*static_cast<const char*>(p)));
}

}  // namespace hasten::HASTEN_ISA
