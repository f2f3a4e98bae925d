// Packed weight matrices: eight neighbouring weights of a row as numbers, whatever the format.
//
// A block holds 32 weights of a row. Q4 codes: the low nibbles of the 16 bytes are weights 0..16, the high ones 16..32.
#pragma once

#include "device.cuh"

constexpr uint32_t BLOCK_WEIGHTS = 32;

// Eight neighbouring weights of a row as they are stored: codes, and the f16 scale of their block with its minimum above it.
template <uint32_t FORMAT>
struct Stored8 {
    uint2 codes;
    uint32_t scales;
};
template <>
struct Stored8<WEIGHT_DENSE> {
    uint4 numbers;
};

// Weights `col .. col + 8` of `row`; `col` is a multiple of 8. Q4: codes that are the low nibbles of some weights are the high ones of
// others.
template <uint32_t FORMAT>
__device__ __forceinline__ Stored8<FORMAT> load_stored8(const WeightView& weight, uint32_t row, uint32_t col) {
    const size_t place = size_t(row) * weight.cols + col;
    if constexpr (FORMAT == WEIGHT_DENSE) {
        return {load_once(static_cast<const uint4*>(weight.codes) + place / VECTOR)};
    } else {
        constexpr bool IS_BYTES = FORMAT == WEIGHT_Q8_0;
        const size_t block = place / BLOCK_WEIGHTS;
        const uint32_t quarter = col % BLOCK_WEIGHTS / VECTOR;
        const size_t piece = block * (IS_BYTES ? 4 : 2) + (IS_BYTES ? quarter : quarter % 2);
        const uint32_t scales = FORMAT == WEIGHT_Q4_1 ? static_cast<const uint32_t*>(weight.scales)[block]
                                                      : static_cast<const uint16_t*>(weight.scales)[block];
        return {load_once(static_cast<const uint2*>(weight.codes) + piece), scales};
    }
}

// The numbers they stand for; `col` as they were loaded.
template <class T, uint32_t FORMAT>
__device__ __forceinline__ void decode8(const Stored8<FORMAT>& stored, uint32_t col, float (&out)[VECTOR]) {
    if constexpr (FORMAT == WEIGHT_DENSE) {
        unpack8<T>(stored.numbers, out);
    } else {
        const float scale = low_of<f16>(stored.scales), offset = high_of<f16>(stored.scales);
        const bool is_low = col % BLOCK_WEIGHTS < BLOCK_WEIGHTS / 2;
#pragma unroll
        for (uint32_t index = 0; index < VECTOR; ++index) {
            const uint32_t byte = (index < 4 ? stored.codes.x : stored.codes.y) >> (8 * (index % 4)) & 0xFF;
            if constexpr (FORMAT == WEIGHT_Q8_0) {
                out[index] = scale * float(int8_t(byte));
            } else {
                const uint32_t code = is_low ? byte & 15 : byte >> 4;
                out[index] = FORMAT == WEIGHT_Q4_0 ? scale * (float(code) - 8.0f) : scale * float(code) + offset;
            }
        }
    }
}

// Both at once.
template <class T, uint32_t FORMAT>
__device__ __forceinline__ void load_weights8(const WeightView& weight, uint32_t row, uint32_t col,
                                              float (&out)[VECTOR]) {
    decode8<T>(load_stored8<FORMAT>(weight, row, col), col, out);
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
