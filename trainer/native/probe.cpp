// What libtorch says of itself.

#include <ATen/Version.h>

#include "guarded.h"

extern "C" {

// Writes how the loaded libtorch was built, as text that ft_autograd_free_message releases. Returns 0, or 1 with the message of what it threw.
int ft_libtorch_configuration(char **text) {
    char *message = nullptr;
    const int status = ft::guarded(&message, [&] { *text = ft::copy_message(at::show_config().c_str()); });
    if (status != 0) *text = message;
    return status;
}

}  // extern "C"
