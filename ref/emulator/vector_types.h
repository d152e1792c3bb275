// CUDA's <vector_types.h> for the emulator.
#pragma once

#include "cuda_vectors.hpp"
