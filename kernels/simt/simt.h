// A small machine that runs the kernels on the host: each CUDA thread is a fiber, a barrier, shuffle or vote is a yield, and
// blocks run one after the other. It is a model of what a kernel may rely on, not of a GPU's speed or arithmetic:
//
// - Shared memory holds 0xFF (NaN) when a block starts, and has exactly the launch's size: a sanitizer sees the end.
// - At every yield the lowest (forward), the highest (reverse) or any (random) of the threads that may run goes on, so that a
//   warp runs as far ahead as the barriers let it, and a missing barrier changes the result.
// - cp.async poisons its destination when it is issued and copies when its group is waited for: the latest and the earliest
//   moment that the hardware allows.
// - A box of a matrix (TMA) poisons its destination when it is issued and arrives when somebody waits for its barrier.
// - A thread that waits for others that never come, lanes that meet at different operations, and copies that nobody waited
//   for end the launch with an error.
//
// Not modelled: products that read their operands after they were issued (wgmma), memory order between blocks (they run in turn), bank conflicts, the tensor cores' rounding, timing.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "params.h"

#define __device__
#define __forceinline__ inline
#define PAGODA_KERNEL(name, Params, num_threads, shared_bytes, ...)         \
    extern "C" const uint32_t name##_geometry[2];                           \
    const uint32_t name##_geometry[2] = {num_threads, uint32_t(shared_bytes)}; \
    extern "C" void name(const Params& params)

struct uint2 {
    uint32_t x, y;
} __attribute__((aligned(8)));
struct uint4 {
    uint32_t x, y, z, w;
} __attribute__((aligned(16)));
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace simt {

struct Index {
    uint32_t x, y, z;
};

// What the running thread may ask about itself.
struct Thread {
    Index thread, block, block_dim, grid_dim;
    void* shared;
};
extern __thread Thread self;

// An operation that all lanes of `mask` do together: called once, with every lane's argument (null where not in `mask`).
using WarpOperation = void (*)(void* const arguments[32]);

void block_barrier();
void warp_operation(uint32_t mask, WarpOperation operation, void* argument);
void copy_async(void* to, const void* from, uint32_t num_bytes, uint32_t num_valid);
void copy_async_commit();
void copy_async_wait(uint32_t num_pending);

// Of sm_90a: barriers in shared memory that count arrivals and bytes, and copies of boxes of a matrix, swizzled.
void mbarrier_init(void* barrier, uint32_t num_arrivals);
void mbarrier_arrive(void* barrier, uint32_t num_bytes);
void mbarrier_wait(void* barrier, uint32_t parity);
struct TensorCopy {
    char* to;
    const uint64_t* map;  // address, rows, columns
    int32_t col, row;
    void* barrier;
};
void tensor_copy(const TensorCopy& copy);
// Where the byte at an offset of the shared memory lies under the swizzle of 128 bytes.
inline uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

inline uint32_t lane() { return self.thread.x % 32; }

}  // namespace simt

#define threadIdx (simt::self.thread)
#define blockIdx (simt::self.block)
#define blockDim (simt::self.block_dim)
#define gridDim (simt::self.grid_dim)

template <class Shared>
inline Shared& shared_memory() {
    return *static_cast<Shared*>(simt::self.shared);
}

inline void __syncthreads() { simt::block_barrier(); }
inline void __threadfence() {}
inline float load_fresh(const float* from) { return *from; }

inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu) {
    simt::warp_operation(mask, [](void* const*) {}, &mask);
}

namespace simt {

template <class T>
struct Shuffle {
    T value;
    uint32_t source;
    T result;
};

template <class T>
T shuffle(uint32_t mask, T value, uint32_t source) {
    Shuffle<T> mine{value, source, value};
    warp_operation(
        mask,
        [](void* const arguments[32]) {
            for (int lane = 0; lane < 32; ++lane) {
                auto* to = static_cast<Shuffle<T>*>(arguments[lane]);
                if (!to) continue;
                auto* from = static_cast<Shuffle<T>*>(arguments[to->source % 32]);
                if (!from) fail("a shuffle reads a lane that does not take part");
                to->result = from->value;
            }
        },
        &mine);
    return mine.result;
}

}  // namespace simt

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, uint32_t lane_mask) {
    return simt::shuffle(mask, value, simt::lane() ^ lane_mask);
}
template <class T>
inline T __shfl_sync(uint32_t mask, T value, uint32_t source) {
    return simt::shuffle(mask, value, source);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, uint32_t delta) {
    return simt::shuffle(mask, value, simt::lane() >= delta ? simt::lane() - delta : simt::lane());
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, uint32_t delta) {
    return simt::shuffle(mask, value, simt::lane() + delta < 32 ? simt::lane() + delta : simt::lane());
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
    struct Vote {
        bool predicate;
        uint32_t result;
    } mine{predicate, 0};
    simt::warp_operation(
        mask,
        [](void* const arguments[32]) {
            uint32_t votes = 0;
            for (int lane = 0; lane < 32; ++lane) {
                if (arguments[lane] && static_cast<Vote*>(arguments[lane])->predicate) votes |= 1u << lane;
            }
            for (int lane = 0; lane < 32; ++lane) {
                if (arguments[lane]) static_cast<Vote*>(arguments[lane])->result = votes;
            }
        },
        &mine);
    return mine.result;
}
inline int __any_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate) == mask; }

// One block runs at a time and a thread keeps running between yields, so a plain read and write is atomic.
template <class T>
inline T atomicAdd(T* address, T value) {
    const T old = *address;
    *address = old + value;
    return old;
}
template <class T>
inline T atomicMax(T* address, T value) {
    const T old = *address;
    if (value > old) *address = value;
    return old;
}
template <class T>
inline T atomicOr(T* address, T value) {
    const T old = *address;
    *address = old | value;
    return old;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
// Byte i of the result is byte `selector >> 4 i & 7` of the eight bytes a, b.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int index = 0; index < 4; ++index) {
        result |= uint32_t(bytes >> 8 * (selector >> 4 * index & 7) & 0xFF) << 8 * index;
    }
    return result;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint32_t __popc(uint32_t value) { return uint32_t(__builtin_popcount(value)); }
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}

// The element types as their bits.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
inline float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
inline float to_float(f16 value) {
    _Float16 half;
    memcpy(&half, &value.bits, 2);
    return float(half);
}
template <class T>
T from_float(float value);
template <>
inline bf16 from_float<bf16>(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return {0x7FFF};
    return {uint16_t((uint64_t(bits) + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float value) {
    const _Float16 half = _Float16(value);
    f16 result;
    memcpy(&result.bits, &half, 2);
    return result;
}
inline uint16_t bits_of(bf16 value) { return value.bits; }
inline uint16_t bits_of(f16 value) { return value.bits; }
template <class T>
inline T from_bits(uint16_t bits) {
    return T{bits};
}
