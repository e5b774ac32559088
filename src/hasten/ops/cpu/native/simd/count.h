// A small number known at compile time, passed as a value.
#pragma once

#include "../kernels.h"

namespace hasten::HASTEN_ISA {

template <int N>
struct Count {
    static constexpr int value = N;
};

}  // namespace hasten::HASTEN_ISA
