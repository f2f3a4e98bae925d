// Packed weight matrices: eight neighbouring weights of a row as numbers, whatever the format.
//
// A block holds 32 weights of a row. Q4 codes: the low nibbles of the 16 bytes are weights 0..16, the high ones 16..32.
#pragma once

#include "device.cuh"

constexpr uint32_t BLOCK_WEIGHTS = 32;

// The f16 at `scales[index]`.
__device__ __forceinline__ float scale_at(const void* scales, size_t index) {
    return to_float(static_cast<const f16*>(scales)[index]);
}

// Weights `col .. col + 8` of `row`; `col` is a multiple of 8.
template <class T, uint32_t FORMAT>
__device__ __forceinline__ void load_weights8(const WeightView& weight, uint32_t row, uint32_t col,
                                              float (&out)[VECTOR]) {
    if constexpr (FORMAT == WEIGHT_DENSE) {
        load8(static_cast<const T*>(weight.codes) + size_t(row) * weight.cols + col, out);
    } else {
        const size_t block = (size_t(row) * weight.cols + col) / BLOCK_WEIGHTS;
        const uint32_t quarter = col % BLOCK_WEIGHTS / VECTOR;
        constexpr bool IS_BYTES = FORMAT == WEIGHT_Q8_0;
        const uint32_t piece = IS_BYTES ? quarter : quarter % 2;
        const uint2 codes = static_cast<const uint2*>(weight.codes)[block * (IS_BYTES ? 4 : 2) + piece];
        const float scale = scale_at(weight.scales, FORMAT == WEIGHT_Q4_1 ? 2 * block : block);
        const float offset = FORMAT == WEIGHT_Q4_1 ? scale_at(weight.scales, 2 * block + 1) : 0.0f;
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) {
            const uint32_t byte = (index < 4 ? codes.x : codes.y) >> (8 * (index % 4)) & 0xFF;
            if constexpr (IS_BYTES) {
                out[index] = scale * float(int8_t(byte));
            } else {
                const uint32_t code = quarter < 2 ? byte & 15 : byte >> 4;
                out[index] = FORMAT == WEIGHT_Q4_0 ? scale * (float(code) - 8.0f) : scale * float(code) + offset;
            }
        }
    }
}

// Calls `body` with the format as a compile-time constant: `body.template operator()<FORMAT>()`.
template <class Body>
__device__ __forceinline__ void with_format(uint32_t format, Body body) {
    switch (format) {
        case WEIGHT_DENSE: body.template operator()<WEIGHT_DENSE>(); break;
        case WEIGHT_Q8_0: body.template operator()<WEIGHT_Q8_0>(); break;
        case WEIGHT_Q4_0: body.template operator()<WEIGHT_Q4_0>(); break;
        case WEIGHT_Q4_1: body.template operator()<WEIGHT_Q4_1>(); break;
    }
}
