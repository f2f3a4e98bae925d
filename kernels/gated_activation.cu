// out[r][i] = act(gate_up[r][i]) * gate_up[r][width + i], act = SiLU or the tanh form of GELU  (Shazeer, arXiv 2002.05202)
//
// Launch: 256 threads per block, eight outputs per thread, as many blocks as it takes. Bytes: 2 reads, 1 write of a T.
#include "device.cuh"

constexpr uint32_t THREADS = 256;

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float gelu_tanh(float x) {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
    return 0.5f * x * (1.0f + tanhf(inner));
}

template <class T>
__device__ void gated_activation(const GatedActivationParams& params) {
    const size_t first = (size_t(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (first >= size_t(params.num_rows) * params.width) return;
    const size_t row = first / params.width;
    const uint32_t col = uint32_t(first % params.width);
    const T* gate_up = static_cast<const T*>(params.gate_up) + row * 2 * params.width;
    float gate[VECTOR], up[VECTOR];
    load8(gate_up + col, gate);
    load8(gate_up + params.width + col, up);
#pragma unroll
    for (uint32_t index = 0; index < VECTOR; ++index) {
        gate[index] = (params.activation == 0 ? silu(gate[index]) : gelu_tanh(gate[index])) * up[index];
    }
    store8(static_cast<T*>(params.out) + first, gate);
}

PAGODA_KERNEL(gated_activation_bf16, GatedActivationParams, THREADS, 0) { gated_activation<bf16>(params); }
PAGODA_KERNEL(gated_activation_f16, GatedActivationParams, THREADS, 0) { gated_activation<f16>(params); }
