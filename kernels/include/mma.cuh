// The instructions of the tensor cores and of asynchronous copies, each behind one function: PTX on the device, and in the
// host shim what the PTX manual says it does (ISA 8.x, sections mma.m16n8k16, ldmatrix, cp.async).
//
// Fragments of one m16n8k16 product, for lane = 4 g + t:
//
//   A [16 x 16]  a0: (g, 2t..2t+1)   a1: (g + 8, 2t..)   a2: (g, 2t + 8..)   a3: (g + 8, 2t + 8..)
//   B [16 x 8]   b0: (2t..2t+1, g)   b1: (2t + 8.., g)                       (k, n)
//   C [16 x 8]   c0, c1: (g, 2t..2t+1)   c2, c3: (g + 8, 2t..)
#pragma once

#include "device.cuh"

#ifdef PAGODA_SIMT

namespace simt {

template <class T>
struct Mma {
    float* c;
    const uint32_t* a;
    const uint32_t* b;
};

template <class T>
__attribute__((no_sanitize("address", "undefined"))) void mma_all_lanes(void* const arguments[32]) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto* mine = static_cast<const Mma<T>*>(arguments[lane]);
        if (!mine) fail("mma without all lanes");
        const int g = lane / 4, t = lane % 4;
        for (int piece = 0; piece < 4; ++piece) {
            a[g + piece % 2 * 8][2 * t + piece / 2 * 8] = low_of<T>(mine->a[piece]);
            a[g + piece % 2 * 8][2 * t + piece / 2 * 8 + 1] = high_of<T>(mine->a[piece]);
        }
        for (int piece = 0; piece < 2; ++piece) {
            b[2 * t + piece * 8][g] = low_of<T>(mine->b[piece]);
            b[2 * t + piece * 8 + 1][g] = high_of<T>(mine->b[piece]);
        }
    }
    float product[16][8] = {};
    for (int m = 0; m < 16; ++m) {
        for (int k = 0; k < 16; ++k) {
            for (int n = 0; n < 8; ++n) product[m][n] += a[m][k] * b[k][n];
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* c = static_cast<const Mma<T>*>(arguments[lane])->c;
        const int g = lane / 4, t = lane % 4;
        for (int piece = 0; piece < 4; ++piece) c[piece] += product[g + piece / 2 * 8][2 * t + piece % 2];
    }
}

struct LoadMatrix {
    uint32_t* out;
    const void* row;
};

template <bool IS_TRANSPOSED>
void load_matrices(void* const arguments[32]) {
    uint16_t matrices[4][8][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto* mine = static_cast<const LoadMatrix*>(arguments[lane]);
        if (!mine) fail("ldmatrix without all lanes");
        if (reinterpret_cast<uintptr_t>(mine->row) % 16) fail("ldmatrix reads a row that is not 16-byte aligned");
        memcpy(matrices[lane / 8][lane % 8], mine->row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; ++matrix) {
            const auto& m = matrices[matrix];
            const uint32_t low = IS_TRANSPOSED ? m[2 * t][g] : m[g][2 * t];
            const uint32_t high = IS_TRANSPOSED ? m[2 * t + 1][g] : m[g][2 * t + 1];
            static_cast<const LoadMatrix*>(arguments[lane])->out[matrix] = low | high << 16;
        }
    }
}

}  // namespace simt

// c += a b
template <class T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    simt::Mma<T> mine{c, a, b};
    simt::warp_operation(FULL_WARP, simt::mma_all_lanes<T>, &mine);
}
inline void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
    simt::LoadMatrix mine{out, row};
    simt::warp_operation(FULL_WARP, simt::load_matrices<false>, &mine);
}
inline void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* row) {
    simt::LoadMatrix mine{out, row};
    simt::warp_operation(FULL_WARP, simt::load_matrices<true>, &mine);
}
inline void copy_async16(void* to, const void* from, bool is_valid) {
    simt::copy_async(to, from, 16, is_valid ? 16 : 0);
}
inline void copy_async_part16(void* to, const void* from, uint32_t num_valid) {
    simt::copy_async(to, from, 16, num_valid);
}
inline void copy_async_commit() { simt::copy_async_commit(); }
template <uint32_t NUM_PENDING>
inline void copy_async_wait() {
    simt::copy_async_wait(NUM_PENDING);
}

#else

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices: lane 8 i + r gives the address of row r of matrix i; lane 4 g + t gets columns 2t, 2t + 1 of row g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of the transposed matrices: lane 4 g + t gets rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Sixteen bytes from global to shared memory past the registers; zeros if not valid (then `from` is not read).
__device__ __forceinline__ void copy_async16(void* to, const void* from, bool is_valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(is_valid ? 16 : 0)
                 : "memory");
}
// The first `num_valid` of sixteen bytes, zeros for the rest.
__device__ __forceinline__ void copy_async_part16(void* to, const void* from, uint32_t num_valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(num_valid)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until all but the last NUM_PENDING groups of this thread are in shared memory.
template <uint32_t NUM_PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(NUM_PENDING) : "memory");
}

#endif
