// The kernels for AVX2, FMA, F16C and AVX-VNNI.
#define HASTEN_ISA avxvnni
#include "simd/avx_vnni.h"

#include "kernels/kernel_table.h"

namespace hasten {

const Kernels* avxvnni_kernels() {
    static const Kernels table = avxvnni::make_kernel_table("avxvnni");
    return &table;
}

}  // namespace hasten
