// Which instruction sets this processor and this system let us use.
#pragma once

#include "kernels.h"

namespace hasten {

// The kernels of an instruction set by name ("avx2", "avxvnni", "avx512", "amx"), or null if it is unknown or cannot run here. For
// "amx" the system is asked for permission to use tiles, once per process.
const Kernels* find_kernels(const char* name);

// The fastest that runs here, or null.
const Kernels* best_kernels();

}  // namespace hasten
