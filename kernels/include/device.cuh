// What every kernel includes: the element types, how a kernel is declared, how it gets its shared memory. The same file
// is compiled by nvcc for the device and by g++ for the host shim (simt/simt.h), which defines the same names.
//
// Shared memory is always the launch's dynamic memory, seen as one struct: the host then knows its exact size and can
// poison it and guard its end.
#pragma once

#include "params.h"

#ifdef PAGODA_SIMT
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

// Declares `name(const Params& params)` for blocks of `num_threads` threads and `shared_bytes` of shared memory. The host shim
// holds every launch to both. A fifth argument is how many blocks a multiprocessor shall have room for: else ptxas guesses.
#define PAGODA_KERNEL(name, Params, num_threads, shared_bytes, ...) \
    extern "C" __global__ void __launch_bounds__(num_threads __VA_OPT__(, ) __VA_ARGS__) \
        name(const __grid_constant__ Params params)

// The block's shared memory.
template <class Shared>
__device__ __forceinline__ Shared& shared_memory() {
    extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
    return *reinterpret_cast<Shared*>(dynamic_shared_memory);
}

// Reads what another block wrote during this launch: past the L1, which is not kept coherent.
__device__ __forceinline__ float load_fresh(const float* from) { return __ldcg(from); }

__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(f16 value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
    return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float value) {
    return __float2half_rn(value);
}

// The bits of an element, and back.
__device__ __forceinline__ uint16_t bits_of(bf16 value) { return __bfloat16_as_ushort(value); }
__device__ __forceinline__ uint16_t bits_of(f16 value) { return __half_as_ushort(value); }
template <class T>
__device__ __forceinline__ T from_bits(uint16_t bits);
template <>
__device__ __forceinline__ bf16 from_bits<bf16>(uint16_t bits) {
    return __ushort_as_bfloat16(bits);
}
template <>
__device__ __forceinline__ f16 from_bits<f16>(uint16_t bits) {
    return __ushort_as_half(bits);
}

// Two products in one register.
template <class T>
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t multiply2<bf16>(uint32_t a, uint32_t b) {
    const __nv_bfloat162 product = __hmul2(reinterpret_cast<__nv_bfloat162&>(a), reinterpret_cast<__nv_bfloat162&>(b));
    return reinterpret_cast<const uint32_t&>(product);
}
template <>
__device__ __forceinline__ uint32_t multiply2<f16>(uint32_t a, uint32_t b) {
    const __half2 product = __hmul2(reinterpret_cast<__half2&>(a), reinterpret_cast<__half2&>(b));
    return reinterpret_cast<const uint32_t&>(product);
}
#endif

constexpr uint32_t WARP_SIZE = 32;
constexpr uint32_t FULL_WARP = 0xFFFFFFFFu;

// Two elements in one register, the first in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
    return uint32_t(bits_of(from_float<T>(low))) | uint32_t(bits_of(from_float<T>(high))) << 16;
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
    return to_float(from_bits<T>(uint16_t(pair)));
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
    return to_float(from_bits<T>(uint16_t(pair >> 16)));
}

#ifdef PAGODA_SIMT
// Two products in one register.
template <class T>
inline uint32_t multiply2(uint32_t a, uint32_t b) {
    return pack2<T>(low_of<T>(a) * low_of<T>(b), high_of<T>(a) * high_of<T>(b));
}
#endif

// What nobody will read again: it need not stay in a cache.
template <class V>
__device__ __forceinline__ V load_once(const V* from) {
#ifdef PAGODA_SIMT
    return *from;
#else
    return __ldcs(from);
#endif
}

// Eight elements: one 16-byte access. `from` and `to` are 16-byte aligned.
constexpr uint32_t VECTOR = 8;

template <class T>
__device__ __forceinline__ void unpack8(uint4 packed, float (&out)[VECTOR]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        out[2 * pair] = low_of<T>(pairs[pair]);
        out[2 * pair + 1] = high_of<T>(pairs[pair]);
    }
}
template <class T>
__device__ __forceinline__ void load8(const T* from, float (&out)[VECTOR]) {
    unpack8<T>(*reinterpret_cast<const uint4*>(from), out);
}
template <class T>
__device__ __forceinline__ uint4 pack8(const float (&values)[VECTOR]) {
    return make_uint4(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]),
                      pack2<T>(values[4], values[5]), pack2<T>(values[6], values[7]));
}
template <class T>
__device__ __forceinline__ void store8(T* to, const float (&values)[VECTOR]) {
    *reinterpret_cast<uint4*>(to) = pack8<T>(values);
}
