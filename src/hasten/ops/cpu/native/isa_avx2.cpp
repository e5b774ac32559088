// The kernels for AVX2, FMA and F16C.
#define HASTEN_ISA avx2
#include "simd/dot_avx2.h"

#include "kernels/kernel_table.h"

namespace hasten {

const Kernels* avx2_kernels() {
    static const Kernels table = avx2::make_kernel_table("avx2");
    return &table;
}

}  // namespace hasten
