// K and V in eight bits: e4m3 codes (sign, 4 bits of exponent with bias 7, 3 of fraction, finite up to 448; Micikevicius et al.,
// arXiv 2209.05433) and one scale per head and slot, a power of two: its byte b says 2^(b - 247). So a stored number is
// exactly a bf16, and an f16 down to 2^-14: what is computed with it is computed as with those.
//
//   b = 233..254   2^-14 .. 2^7; larger numbers than 448 * 2^7 saturate
//   b = 255        infinite: something in the head was not finite, and neither is what is read; also what poison reads as
//   b = 0          zero, with codes that are zero: keys behind the context
#pragma once

#include "device.cuh"

struct e4m3 {
    uint8_t bits;
};

constexpr uint32_t E4M3_SCALE_BIAS = 247;
constexpr uint32_t E4M3_MIN_SCALE = E4M3_SCALE_BIAS - 14;
constexpr uint32_t E4M3_MAX_SCALE = E4M3_SCALE_BIAS + 7;
constexpr uint32_t E4M3_NOT_FINITE = 255;
constexpr float E4M3_MAX = 448.0f;

// The scale of a head whose largest magnitude has these bits: the smallest under which it stays at or below 448 = 1.75 * 2^8.
__device__ __forceinline__ uint32_t e4m3_scale(uint32_t largest_bits) {
    if (largest_bits >= 0x7F800000) return E4M3_NOT_FINITE;
    const uint32_t is_above = (largest_bits & 0x7FFFFF) > 0x600000;
    const uint32_t exponent = (largest_bits >> 23) + is_above;  // of the scale times 2^8, biased by 127
    return min(max(exponent + (E4M3_SCALE_BIAS - 127 - 8), E4M3_MIN_SCALE), E4M3_MAX_SCALE);
}

// The inverse of the number that a scale byte says.
__device__ __forceinline__ float e4m3_inverse(uint32_t scale) {
    return __uint_as_float((127 + E4M3_SCALE_BIAS - scale) << 23);
}

// The code nearest to `value`, ties to even.
__device__ __forceinline__ uint32_t e4m3_code(float value) {
    const uint32_t sign = __float_as_uint(value) >> 24 & 0x80;
    const float magnitude = fminf(fabsf(value), E4M3_MAX);
    const uint32_t bits = __float_as_uint(magnitude);
    // Below 2^-6 codes are multiples of 2^-9.
    if (magnitude < 0.015625f) return sign | uint32_t(rintf(magnitude * 512.0f));
    return sign | (((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3));
}

// What the numbers of two codes, spread, are multiplied by: 2^(b - 247) times what the shorter exponent of the
// spread form lacks (2^120 in bf16, 2^8 in f16). One half of a pair.
template <class T>
__device__ __forceinline__ uint32_t e4m3_factor(uint32_t scale);
template <>
__device__ __forceinline__ uint32_t e4m3_factor<bf16>(uint32_t scale) {
    return scale << 7;
}
template <>
__device__ __forceinline__ uint32_t e4m3_factor<f16>(uint32_t scale) {
    return (scale & 31) << 10;
}

// Moves the fields of two codes, which lie in the upper bytes of both halves, to where T has them; not yet scaled.
template <class T>
__device__ __forceinline__ uint32_t spread_e4m3(uint32_t codes);
template <>
__device__ __forceinline__ uint32_t spread_e4m3<bf16>(uint32_t codes) {
    return (codes & 0x80008000) | (codes >> 4 & 0x07F007F0);
}
template <>
__device__ __forceinline__ uint32_t spread_e4m3<f16>(uint32_t codes) {
    return (codes & 0x80008000) | (codes >> 1 & 0x3F803F80);
}

// Bytes LOW and HIGH of `codes` as a pair of T. `factors` holds e4m3_factor of both.
template <class T, uint32_t LOW, uint32_t HIGH>
__device__ __forceinline__ uint32_t widen_e4m3(uint32_t codes, uint32_t factors) {
    constexpr uint32_t ZERO = 4;
    const uint32_t apart = __byte_perm(codes, 0, HIGH << 12 | ZERO << 8 | LOW << 4 | ZERO);
    return multiply2<T>(spread_e4m3<T>(apart), factors);
}
