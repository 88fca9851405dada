// Memory of a device, and how libtorch's allocator takes it. All goes through libtorch's own registries, so that no header of CUDA is needed
// and libtorch_cuda.so may be absent.

#include <ATen/Context.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <exception>

namespace {

// 0 when it worked, 1 where libtorch has no such device or no allocator for it.
template <typename Work>
int attempt(int device, Work work) {
    try {
        at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
        auto *allocator = dynamic_cast<c10::DeviceAllocator *>(c10::GetAllocator(c10::DeviceType::CUDA));
        if (allocator == nullptr) return 1;
        work(*allocator, static_cast<c10::DeviceIndex>(device));
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}

}  // namespace

extern "C" {

// Writes the bytes that are free on a CUDA device, whoever holds the rest, and those that it has.
int ft_device_memory(int device, uint64_t *free_bytes, uint64_t *total_bytes) {
    return attempt(device, [&](c10::DeviceAllocator &allocator, c10::DeviceIndex index) {
        const auto memory = allocator.getMemoryInfo(index);
        *free_bytes = memory.first;
        *total_bytes = memory.second;
    });
}

// Writes the most bytes that tensors of this process had on a CUDA device at a time.
int ft_device_peak_memory(int device, uint64_t *bytes) {
    return attempt(device, [&](c10::DeviceAllocator &allocator, c10::DeviceIndex index) {
        constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        *bytes = static_cast<uint64_t>(allocator.getDeviceStats(index).allocated_bytes[all].peak);
    });
}

// Lets segments of device memory grow where they are, so that free room between tensors of other sizes is not lost. Returns whether the
// allocator will do so.
int ft_expand_segments() {
    try {
        c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
        return c10::CachingAllocator::AcceleratorAllocatorConfig::use_expandable_segments() ? 1 : 0;
    } catch (const std::exception &) {
        return 0;
    }
}
}
