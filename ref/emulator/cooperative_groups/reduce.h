// CUDA's <cooperative_groups/reduce.h> for the emulator.
#pragma once

#include "../cooperative_groups.h"

namespace cooperative_groups {

template <typename T>
struct plus {
    T operator()(T a, T b) const { return a + b; }
};
template <typename T>
struct less {  // the smaller one
    T operator()(T a, T b) const { return b < a ? b : a; }
};
template <typename T>
struct greater {  // the greater one
    T operator()(T a, T b) const { return a < b ? b : a; }
};
template <typename T>
struct bit_and {
    T operator()(T a, T b) const { return a & b; }
};
template <typename T>
struct bit_or {
    T operator()(T a, T b) const { return a | b; }
};
template <typename T>
struct bit_xor {
    T operator()(T a, T b) const { return a ^ b; }
};

// Of the values of all threads of a tile or of a coalesced group, in each of them. CUDA does not say in which order
// they are combined: here as a butterfly does, halves of the group with each other.
template <typename Group, typename T, typename Combine>
T reduce(const Group& group, T value, Combine combine) {
    const emulator::Lanes lanes =
        emulator::gather("cooperative_groups::reduce", group.lanes(), emulator::to_bits(value));
    T values[32];
    unsigned count = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (group.lanes() >> lane & 1) values[count++] = emulator::from_bits<T>(lanes[lane]);
    while (count > 1) {
        const unsigned half = (count + 1) / 2;
        for (unsigned i = 0; i + half < count; ++i) values[i] = combine(values[i], values[i + half]);
        count = half;
    }
    return values[0];
}

}  // namespace cooperative_groups
