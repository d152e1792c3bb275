// What is known of a __shared__ variable: kernels/build/plain_cpp.py writes one of these for each declaration.
#pragma once

#include <cstddef>
#include <type_traits>

namespace emulator {

struct SharedVariable {
    const char* name;
    std::size_t bytes, element;  // element: bytes of one, if it is an array
    std::size_t dimensions, extents[4];

    template <typename T>
    static constexpr SharedVariable of(const char* name) {
        static_assert(std::rank_v<T> <= 4, "a __shared__ array has at most 4 dimensions on the emulator");
        return {name,
                sizeof(T),
                sizeof(std::remove_all_extents_t<T>),
                std::rank_v<T>,
                {std::extent_v<T, 0>, std::extent_v<T, 1>, std::extent_v<T, 2>, std::extent_v<T, 3>}};
    }
};

}  // namespace emulator
