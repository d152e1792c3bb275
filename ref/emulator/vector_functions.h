// CUDA's <vector_functions.h> for the emulator.
#pragma once

#include "cuda_vectors.hpp"
