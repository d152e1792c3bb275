// CUDA's <cuda.h> for the emulator: of the driver's interface, what a kernel's file needs.
#pragma once

#include "cuda_runtime.h"
#include "ptx.cuh"

using CUtensorMap = TensorMap;
