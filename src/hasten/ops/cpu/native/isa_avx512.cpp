// The kernels for AVX-512 and VNNI.
#define HASTEN_ISA avx512
#include "simd/avx512.h"

#include "kernels/kernel_table.h"

namespace hasten {

const Kernels* avx512_kernels() {
    static const Kernels table = avx512::make_kernel_table("avx512");
    return &table;
}

}  // namespace hasten
