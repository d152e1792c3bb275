// What a tensor map and the copy engine's reductions are told: the types of elements, and the operations.
#pragma once

#include <cstdint>

// The numbers are those of CUtensorMapDataType.
enum class Element { u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16 };

constexpr uint32_t element_bytes(Element element) {
    return element == Element::u8                                                           ? 1
           : element == Element::u16 || element == Element::f16 || element == Element::bf16 ? 2
           : element == Element::u32 || element == Element::s32 || element == Element::f32  ? 4
                                                                                            : 8;
}

// What a reduction makes of an element in memory and one that arrives. inc: 0 if the old one is at least the new one,
// else one more. dec: the new one if the old one is 0 or greater than that, else one less.
enum class Reduction { add, min, max, inc, dec, bit_and, bit_or, bit_xor };

// Whether cp.reduce.async.bulk to global memory has the operation for elements of that type.
constexpr bool has_reduction(Reduction reduction, Element element) {
    const bool integer = element == Element::u32 || element == Element::s32 || element == Element::u64;
    switch (reduction) {
        case Reduction::add:
            return integer || element == Element::f16 || element == Element::bf16 || element == Element::f32 ||
                   element == Element::f64;
        case Reduction::min:
        case Reduction::max:
            return integer || element == Element::s64 || element == Element::f16 || element == Element::bf16;
        case Reduction::inc:
        case Reduction::dec:
            return element == Element::u32;
        default:
            return element == Element::u32 || element == Element::u64;
    }
}

// Whether cp.reduce.async.bulk to shared memory of the cluster has it.
constexpr bool has_shared_reduction(Reduction reduction, Element element) {
    if (element == Element::u64) return reduction == Reduction::add;
    return (element == Element::u32 || element == Element::s32) && has_reduction(reduction, element);
}

// The same as constants, which device code can use.
template <Element kElement>
constexpr uint32_t kElementBytes = element_bytes(kElement);
template <Reduction kReduction, Element kElement>
constexpr bool kHasReduction = has_reduction(kReduction, kElement);
template <Reduction kReduction, Element kElement>
constexpr bool kHasSharedReduction = has_shared_reduction(kReduction, kElement);
