// The stream that libtorch launches on. It is asked for through libtorch's own registry of devices, so that no header of CUDA is needed and
// libtorch_cuda.so may be absent.

#include <c10/core/impl/VirtualGuardImpl.h>

#include <exception>

extern "C" {
// Writes the current stream of a CUDA device of this thread, a CUstream. Returns 0, or 1 where libtorch has no such device.
int ft_current_stream(int device, void **stream) {
    try {
        const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
        const auto index = static_cast<c10::DeviceIndex>(device);
        *stream = guard.getStreamNativeHandle(guard.getStream(c10::Device(c10::DeviceType::CUDA, index)));
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}
}
