// CUDA's <device_launch_parameters.h> for the emulator, where cuda_runtime.h has all of it.
#pragma once

#include "cuda_runtime.h"
