// The kernels for AVX2 with FMA and F16C.
#define HASTEN_ISA avx2
#include "simd/words.h"

#include "kernels/table.h"

namespace hasten {

const Kernels* avx2_kernels() {
    static const Kernels table = avx2::make_table("avx2");
    return &table;
}

}  // namespace hasten
