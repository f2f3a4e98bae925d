// Sums over a warp and over a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "device.cuh"

// The sum over the warp's lanes, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (uint32_t distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(FULL_WARP, value, distance);
    }
    return value;
}

// The largest of the warp's lanes, in every lane.
__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#pragma unroll
    for (uint32_t distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        value = max(value, __shfl_xor_sync(FULL_WARP, value, distance));
    }
    return value;
}

// The sum over a block of NUM_THREADS threads, in every thread. `partial` has a place per warp; it may be used again after
// the next barrier.
template <uint32_t NUM_THREADS>
__device__ __forceinline__ float block_sum(float value, float (&partial)[NUM_THREADS / WARP_SIZE]) {
    const float sum = warp_sum(value);
    if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = sum;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (uint32_t warp = 0; warp < NUM_THREADS / WARP_SIZE; ++warp) total += partial[warp];
    return total;
}
