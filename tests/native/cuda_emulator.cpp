// The driver of a CUDA device that is the host: what quant/src/cuda/driver.rs calls of libcuda.so, with our kernels compiled by the C++
// compiler in place of loaded code. So the kernels, their launches and all around them are tested on machines without a GPU; what
// it cannot show is what NVIDIA's compiler and devices make of the same sources.
//
// Device memory ends where a page does that nobody may touch, so that a kernel that reads or writes past its end dies.

#include "cuda_host.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>
#include <tuple>

namespace unpack {
#include "../../quant/kernels/mxfp4_unpack.cu"
}
namespace pack {
// Files include the same functions, here each in a namespace of its own.
#include "../../quant/kernels/mxfp4_pack.cu"
}
namespace swiglu {
#include "../../quant/kernels/swiglu.cu"
}
namespace rms_norm {
#include "../../quant/kernels/rms_norm.cu"
}
namespace rope {
#include "../../quant/kernels/rope.cu"
}
namespace combine {
#include "../../quant/kernels/combine.cu"
}
namespace expert_bias {
#include "../../quant/kernels/expert_bias.cu"
}
namespace cross_entropy {
#include "../../quant/kernels/cross_entropy.cu"
}

// ---- Kernels by name -----------------------------------------------------------------------------------------------------------------

template <class Argument>
static Argument argument(void **&arguments) {
    Argument value;
    memcpy(&value, *arguments++, sizeof(value));
    return value;
}

template <class... Arguments>
static std::function<void(unsigned int, unsigned int, void **)> launcher(void (*kernel)(Arguments...)) {
    return [kernel](unsigned int blocks, unsigned int threads, void **arguments) {
        // Braces keep the order of the arguments.
        const std::tuple<Arguments...> values{argument<Arguments>(arguments)...};
        run_kernel(blocks, threads, [&] { std::apply(kernel, values); });
    };
}

using Launcher = std::function<void(unsigned int, unsigned int, void **)>;

static const std::map<std::string, Launcher> &kernels() {
#define KERNEL(SPACE, NAME) {#NAME, launcher(SPACE::NAME)}
    static const std::map<std::string, Launcher> all = {
        KERNEL(unpack, mxfp4_unpack_rows_bf16),
        KERNEL(unpack, mxfp4_unpack_columns_bf16),
        KERNEL(pack, mxfp4_pack_rows_even),
        KERNEL(pack, mxfp4_pack_rows_toward_zero),
        KERNEL(pack, mxfp4_pack_rows_search_even),
        KERNEL(pack, mxfp4_pack_rows_search_toward_zero),
        KERNEL(pack, mxfp4_pack_columns_even),
        KERNEL(pack, mxfp4_pack_columns_toward_zero),
        KERNEL(pack, mxfp4_pack_columns_search_even),
        KERNEL(pack, mxfp4_pack_columns_search_toward_zero),
        KERNEL(swiglu, swiglu_bf16),
        KERNEL(swiglu, swiglu_f32),
        KERNEL(swiglu, swiglu_backward_bf16),
        KERNEL(swiglu, swiglu_backward_f32),
        KERNEL(rms_norm, rms_norm_bf16),
        KERNEL(rms_norm, rms_norm_f32),
        KERNEL(rms_norm, rms_norm_backward_bf16),
        KERNEL(rms_norm, rms_norm_backward_f32),
        KERNEL(rms_norm, rms_norm_weight_partials_bf16),
        KERNEL(rms_norm, rms_norm_weight_partials_f32),
        KERNEL(rms_norm, rms_norm_weight_gradient),
        KERNEL(rope, rope_bf16),
        KERNEL(rope, rope_f32),
        KERNEL(combine, combine_bf16_bf16),
        KERNEL(combine, combine_bf16_f32),
        KERNEL(combine, combine_f32_f32),
        KERNEL(combine, combine_backward_bf16_bf16),
        KERNEL(combine, combine_backward_bf16_f32),
        KERNEL(combine, combine_backward_f32_f32),
        KERNEL(expert_bias, expert_bias_bf16),
        KERNEL(expert_bias, expert_bias_f32),
        KERNEL(cross_entropy, cross_entropy_bf16),
        KERNEL(cross_entropy, cross_entropy_f32),
    };
    return all;
}

// ---- The driver ----------------------------------------------------------------------------------------------------------------------

// Source of names and codes: the CUDA Driver API, version 13.
enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
enum Attribute { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 };

static int depth_of_contexts = 0, num_launches = 0;
static std::map<unsigned long long, std::pair<char *, size_t>> allocations;

// Largest size that can be allocated; the tests make a device run out of memory with it.
constexpr size_t MEMORY_BYTES = (size_t)1 << 30;

// ---- For the tests themselves: element functions, one value at a time, and what the driver counted ----

static void unpack_values(unsigned int word, unsigned int scale, unsigned int *pairs, unsigned long long *first_bad) {
    const uint4 unpacked = unpack::unpack_any_word(word, scale, 0, first_bad);
    memcpy(pairs, &unpacked, sizeof(unpacked));
}
static unsigned int pack_pair(unsigned int pair, unsigned int scale, unsigned int other_scale, bool is_even) {
    return is_even ? pack::pair_codes<true>(pair, pack::thresholds<true>(scale, other_scale))
                   : pack::pair_codes<false>(pair, pack::thresholds<false>(scale, other_scale));
}
static unsigned int pack_exactly(unsigned int bits, unsigned int scale, bool is_even) {
    return pack::code_exact(bits, pack::scale_value(scale), is_even);
}

// As `Emulator` in tests/cuda_kernels.rs.
struct Emulator {
    void (*unpack_values)(unsigned int, unsigned int, unsigned int *, unsigned long long *);
    unsigned int (*pack_pair)(unsigned int, unsigned int, unsigned int, bool);
    unsigned int (*pack_exactly)(unsigned int, unsigned int, bool);
    unsigned int (*rule_scale)(unsigned int, unsigned int);
    int (*context_depth)();
    int (*allocations)();
    int (*launches)();
};

extern "C" {
const Emulator *ft_emulator() {
    static const Emulator emulator = {
        unpack_values,
        pack_pair,
        pack_exactly,
        pack::rule_scale,
        [] { return depth_of_contexts; },
        [] { return (int)allocations.size(); },
        [] { return num_launches; },
    };
    return &emulator;
}

// ---- libcuda.so ----

int cuInit(unsigned int) { return SUCCESS; }
int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        // One multiprocessor gives small grids, so that kernels have to stride.
        case MULTIPROCESSORS: *value = 1; return SUCCESS;
        case MAJOR: *value = 9; return SUCCESS;
        case MINOR: *value = 0; return SUCCESS;
        default: return INVALID_VALUE;
    }
}
int cuDeviceGetName(char *name, int bytes, int) {
    snprintf(name, (size_t)bytes, "the host");
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = MEMORY_BYTES;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
    static int one;
    *context = &one;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxPushCurrent_v2(void *) {
    ++depth_of_contexts;
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
    *context = nullptr;
    return --depth_of_contexts < 0 ? INVALID_VALUE : SUCCESS;
}
int cuGetErrorString(int, const char **text) {
    *text = "an error of the emulated driver";
    return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
    *text = "EMULATED";
    return SUCCESS;
}

int cuMemAlloc_v2(unsigned long long *address, size_t bytes) {
    if (depth_of_contexts == 0 || bytes == 0) {
        return INVALID_VALUE;
    }
    if (bytes > MEMORY_BYTES) {
        return OUT_OF_MEMORY;
    }
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t aligned = (bytes + 15) / 16 * 16, mapped = (aligned + page - 1) / page * page + page;
    char *start = (char *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    mprotect(start + mapped - page, page, PROT_NONE);
    // What nobody writes is recognised.
    memset(start, 0xa5, mapped - page);
    *address = (unsigned long long)(start + mapped - page - aligned);
    allocations[*address] = {start, mapped};
    return SUCCESS;
}
int cuMemFree_v2(unsigned long long address) {
    const auto found = allocations.find(address);
    if (found == allocations.end()) {
        return INVALID_VALUE;
    }
    munmap(found->second.first, found->second.second);
    allocations.erase(found);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *) {
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *) {
    memcpy(to, (const void *)from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *) {
    memcpy((void *)to, (const void *)from, bytes);
    return SUCCESS;
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void *) {
    memset((void *)to, value, bytes);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned int) {
    *stream = new int;
    return SUCCESS;
}
int cuStreamDestroy_v2(void *stream) {
    delete (int *)stream;
    return SUCCESS;
}
int cuStreamSynchronize(void *) { return SUCCESS; }
int cuEventCreate(void **event, unsigned int) {
    *event = new int;
    return SUCCESS;
}
int cuEventDestroy_v2(void *event) {
    delete (int *)event;
    return SUCCESS;
}
int cuEventRecord(void *, void *) { return SUCCESS; }
int cuEventSynchronize(void *) { return SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, void *, void *) {
    *milliseconds = 1;
    return SUCCESS;
}

// The code must be a cubin for sm_90, an ELF file; what is in it is not run.
int cuModuleLoadData(void **module, const void *code) {
    *module = new int;
    return memcmp(code, "\177ELF", 4) == 0 ? SUCCESS : INVALID_VALUE;
}
int cuModuleUnload(void *module) {
    delete (int *)module;
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *, const char *name) {
    const auto found = kernels().find(name);
    *function = found == kernels().end() ? nullptr : (void *)&found->second;
    return *function == nullptr ? NOT_FOUND : SUCCESS;
}
int cuLaunchKernel(void *function, unsigned int blocks, unsigned int blocks_y, unsigned int blocks_z, unsigned int threads,
                   unsigned int threads_y, unsigned int threads_z, unsigned int, void *, void **arguments, void **) {
    if (depth_of_contexts == 0 || blocks == 0 || blocks_y * blocks_z * threads_y * threads_z != 1) {
        return INVALID_VALUE;
    }
    ++num_launches;
    (*(const Launcher *)function)(blocks, threads, arguments);
    return SUCCESS;
}
}
