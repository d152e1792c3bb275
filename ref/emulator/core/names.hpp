// What addresses of shared memory are called in messages.
#pragma once

#include <cctype>
#include <cstdlib>
#include <string>

#include "../shared_variable.hpp"

namespace emulator {

// The place so many bytes behind the variable's begin, such as "tile[3][5]" or "state + 4 bytes".
inline std::string place_in(const SharedVariable& variable, std::size_t at) {
    std::string indices;
    std::size_t rest = at / variable.element;
    for (std::size_t i = variable.dimensions; i-- > 0; rest /= variable.extents[i])
        indices.insert(0, "[" + std::to_string(rest % variable.extents[i]) + "]");
    const std::size_t inside = at % variable.element;
    return variable.name + indices + (inside ? " + " + std::to_string(inside) + " bytes" : "");
}

// The text with what `name_at` says of each address in it, such as "0x38018 (tile[3][5])". An address that something
// in parentheses follows has a name already; what a + comes before is a place in machine code (place_of).
template <typename NameAt>
std::string with_names(const std::string& text, const NameAt& name_at) {
    std::string named;
    for (std::size_t at = 0; at < text.size();) {
        if (text.compare(at, 2, "0x") != 0 || (at > 0 && text[at - 1] == '+')) {
            named += text[at++];
            continue;
        }
        std::size_t end = at + 2;
        while (end < text.size() && std::isxdigit(static_cast<unsigned char>(text[end]))) ++end;
        named += text.substr(at, end - at);
        if (text.compare(end, 2, " (") != 0)
            if (const std::string name = name_at(std::strtoull(&text[at], nullptr, 16)); !name.empty())
                named += " (" + name + ")";
        at = end;
    }
    return named;
}

}  // namespace emulator
