// Selects the kernels by the instruction sets that processor and system support.
#pragma once

#include "kernels.h"

namespace hasten {

// Returns the kernels of an instruction set ("avx2", "avxvnni", "avx512", "amx"), or null if it is unknown or unsupported. For
// "amx" the process requests tile permission from the system, once.
const Kernels* find_kernels(const char* name);

// Returns the kernels of the fastest supported instruction set, or null.
const Kernels* fastest_kernels();

}  // namespace hasten
