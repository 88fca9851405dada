// Errors at the border to Rust: a function returns 0 when it did its work, else 1 with a message that ft_autograd_free_message releases.

#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>

namespace ft {

inline char *copy_message(const char *text) {
    char *copy = static_cast<char *>(std::malloc(std::strlen(text) + 1));
    if (copy != nullptr) std::strcpy(copy, text);
    return copy;
}

// Runs `work`. Returns 0, or 1 with the message of what it threw.
template <typename Work>
int guarded(char **message, Work work) {
    try {
        work();
        return 0;
    } catch (const std::exception &error) {
        *message = copy_message(error.what());
    } catch (...) {
        *message = copy_message("an exception of an unknown type");
    }
    return 1;
}

}  // namespace ft
