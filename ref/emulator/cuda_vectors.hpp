// CUDA's vector types, with CUDA's alignments.
#pragma once

#include <cstdint>

// clang-format off
#define EMULATOR_VECTORS(T, name, align2, align4)                                                        \
    struct name##1 { T x; };                                                                             \
    struct alignas(align2) name##2 { T x, y; };                                                          \
    struct name##3 { T x, y, z; };                                                                       \
    struct alignas(align4) name##4 { T x, y, z, w; };                                                    \
    constexpr name##1 make_##name##1(T x) { return {x}; }                                                \
    constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                                        \
    constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(signed char, char, 2, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned int, uint, 8, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS
// clang-format on

struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
