// CUDA's <cuda_pipeline.h> for the emulator, without its C++ classes, which are libcu++'s.
#pragma once

#include "cuda_pipeline_primitives.h"
