// CUDA's <cuda_runtime_api.h> for the emulator, where cuda_runtime.h has all of it.
#pragma once

#include "cuda_runtime.h"
