// What sm_90a has and earlier architectures have not: barriers that count bytes, copies of boxes of a matrix by the TMA, and
// products of a warpgroup (PTX ISA 8.x: mbarrier, cp.async.bulk.tensor, wgmma.mma_async). PTX on the device, and in the host shim
// what the manual says they do.
//
// A matrix in shared memory lies in panels of 128 bytes a row (64 numbers), the 16-byte pieces of row r swizzled: piece p is
// at p ^ (r % 8). Panels start at multiples of 1,024 bytes.
#pragma once

#include "mma.cuh"

constexpr uint32_t PANEL_COLS = 64;
// Rows and columns of one copy: the 16 slots that lie in one block of the cache whatever its size.
constexpr uint32_t BOX_ROWS = 16;
constexpr uint32_t BOX_COLS = PANEL_COLS;

// Counts arrivals and bytes; its phases have parities 0, 1, 0, ..
struct alignas(8) Mbarrier {
    uint64_t state;
};

// B of a product, in panels. `panel_bytes`: from 64 columns to the next where B is transposed (else unused); `group_bytes`:
// from eight rows to the next.
struct Panels {
    const void* from;
    uint32_t panel_bytes, group_bytes;
};

#ifdef PAGODA_SIMT

inline void mbarrier_init(Mbarrier& barrier, uint32_t num_arrivals) { simt::mbarrier_init(&barrier, num_arrivals); }
inline void mbarrier_expect(Mbarrier& barrier, uint32_t num_bytes) { simt::mbarrier_arrive(&barrier, num_bytes); }
inline void mbarrier_arrive(Mbarrier& barrier) { simt::mbarrier_arrive(&barrier, 0); }
inline void mbarrier_wait(Mbarrier& barrier, uint32_t parity) { simt::mbarrier_wait(&barrier, parity); }
inline void fence_mbarrier_init() {}
inline void fence_async_proxy() {}
inline void tensor_copy(void* to, const uint64_t (&map)[16], int32_t col, int32_t row, Mbarrier& barrier) {
    simt::tensor_copy({static_cast<char*>(to), map, col, row, &barrier});
}
template <uint32_t NUM_REGISTERS>
inline void lower_registers() {}
template <uint32_t NUM_REGISTERS>
inline void raise_registers() {}
template <uint32_t NUM_PIECES>
inline void wgmma_begin(float (&)[NUM_PIECES][4]) {
    __syncwarp();
}
template <uint32_t NUM_PIECES>
inline void wgmma_end(float (&)[NUM_PIECES][4]) {
    __syncwarp();
}

namespace simt {

template <class T>
struct Wgmma {
    float (*c)[4];
    const uint32_t* a;
    Panels b;
    bool adds;
};

// The bits at (k, n) of a B whose panels begin at offset `start` of the shared memory.
template <bool IS_TRANSPOSED>
inline uint16_t b_bits(const Panels& b, uint32_t start, uint32_t k, uint32_t n) {
    const uint32_t row = IS_TRANSPOSED ? k : n, col = IS_TRANSPOSED ? n : k;
    const uint32_t panel = IS_TRANSPOSED ? col / PANEL_COLS * b.panel_bytes : 0;
    const uint32_t plain = start + panel + row / 8 * b.group_bytes + row % 8 * 128 + col % PANEL_COLS * 2;
    uint16_t bits;
    memcpy(&bits, static_cast<const char*>(self.shared) + swizzled(plain), 2);
    return bits;
}

// A warp's 16 of the 64 rows.
template <class T, uint32_t NUM_COLS, bool IS_TRANSPOSED>
__attribute__((no_sanitize("undefined"))) void wgmma_all_lanes(void* const arguments[32]) {
    static float b[16][NUM_COLS];
    const Panels panels = static_cast<const Wgmma<T>*>(arguments[0])->b;
    const auto start = uint32_t(static_cast<const char*>(panels.from) - static_cast<const char*>(self.shared));
    for (uint32_t k = 0; k < 16; ++k) {
        for (uint32_t n = 0; n < NUM_COLS; ++n) b[k][n] = to_float(from_bits<T>(b_bits<IS_TRANSPOSED>(panels, start, k, n)));
    }
    float a[16][16];
    for (int lane = 0; lane < 32; ++lane) {
        const auto* mine = static_cast<const Wgmma<T>*>(arguments[lane]);
        for (int piece = 0; piece < 4; ++piece) {
            a[lane / 4 + piece % 2 * 8][lane % 4 * 2 + piece / 2 * 8] = low_of<T>(mine->a[piece]);
            a[lane / 4 + piece % 2 * 8][lane % 4 * 2 + piece / 2 * 8 + 1] = high_of<T>(mine->a[piece]);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const auto* mine = static_cast<const Wgmma<T>*>(arguments[lane]);
        for (uint32_t index = 0; index < NUM_COLS / 2; ++index) {
            const uint32_t piece = index % 4;
            const uint32_t m = uint32_t(lane) / 4 + piece / 2 * 8, n = index / 4 * 8 + uint32_t(lane) % 4 * 2 + piece % 2;
            float sum = 0;
            for (uint32_t k = 0; k < 16; ++k) sum += a[m][k] * b[k][n];
            float& c = mine->c[index / 4][piece];
            c = mine->adds ? c + sum : sum;
        }
    }
}

}  // namespace simt

// Runs when it is issued: the device may read A and B later, up to `wgmma_end`.
template <class T, uint32_t NUM_COLS, bool IS_TRANSPOSED>
inline void wgmma_m64k16(float (&c)[NUM_COLS / 8][4], const uint32_t (&a)[4], const Panels& b, bool adds) {
    simt::Wgmma<T> mine{c, a, b, adds};
    simt::warp_operation(FULL_WARP, simt::wgmma_all_lanes<T, NUM_COLS, IS_TRANSPOSED>, &mine);
}

#else

// One thread, before the block's barrier.
__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, uint32_t num_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(num_arrivals) : "memory");
}
// Makes fresh barriers visible to the TMA.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
// Arrives, and makes the phase wait for this many bytes too.
__device__ __forceinline__ void mbarrier_expect(Mbarrier& barrier, uint32_t num_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(num_bytes)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier)) : "memory");
}
// Waits for the end of the phase of this parity; the one before the first counts as ended.
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\nWAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra END;\nbra WAIT;\nEND:\n}\n" ::"r"(shared_address(&barrier)),
        "r"(parity)
        : "memory");
}
// Orders this thread's writes to shared memory before what TMA and wgmma do after the next synchronisation.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Copies the box of BOX_ROWS x BOX_COLS numbers at (row, col), swizzled; its bytes count for the barrier. One thread.
__device__ __forceinline__ void tensor_copy(void* to, const uint64_t (&map)[16], int32_t col, int32_t row,
                                            Mbarrier& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(col), "r"(row), "r"(shared_address(&barrier))
        : "memory");
}

// Gives registers of this warpgroup back to the pool, or takes some.
template <uint32_t NUM_REGISTERS>
__device__ __forceinline__ void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(NUM_REGISTERS));
}
template <uint32_t NUM_REGISTERS>
__device__ __forceinline__ void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(NUM_REGISTERS));
}

// Holds the compiler to the order of what is done with the accumulators before and after: it does not know that a product goes
// on after its instruction.
template <uint32_t NUM_PIECES>
__device__ __forceinline__ void keep_order(float (&c)[NUM_PIECES][4]) {
#pragma unroll
    for (uint32_t piece = 0; piece < NUM_PIECES; ++piece) {
        asm volatile("" : "+f"(c[piece][0]), "+f"(c[piece][1]), "+f"(c[piece][2]), "+f"(c[piece][3])::"memory");
    }
}
// Before the first product of a row of them, once their accumulators are final; and their end.
template <uint32_t NUM_PIECES>
__device__ __forceinline__ void wgmma_begin(float (&c)[NUM_PIECES][4]) {
    keep_order(c);
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
template <uint32_t NUM_PIECES>
__device__ __forceinline__ void wgmma_end(float (&c)[NUM_PIECES][4]) {
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::: "memory");
    keep_order(c);
}

// The matrix descriptor: start, leading and stride offsets in units of 16 bytes; 1 in the upper two bits is the swizzle of 128.
__device__ __forceinline__ uint64_t descriptor_of(const Panels& b) {
    return uint64_t((shared_address(b.from) & 0x3FFFF) >> 4) | uint64_t((b.panel_bytes & 0x3FFFF) >> 4) << 16 |
           uint64_t((b.group_bytes & 0x3FFFF) >> 4) << 32 | uint64_t(1) << 62;
}

// c (+)= a b for the 64 rows of a warpgroup, a in registers: fragments of a warp's 16 rows as of m16n8k16.
template <class T, uint32_t NUM_COLS, bool IS_TRANSPOSED>
struct WgmmaInstruction;

#define PAGODA_WGMMA_64(T, NAME) \
    template <bool IS_TRANSPOSED> \
    struct WgmmaInstruction<T, 64, IS_TRANSPOSED> { \
        static __device__ __forceinline__ void run(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, int32_t adds) { \
            asm volatile( \
            "{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n" \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
            "}, {%32, %33, %34, %35}, %36, adds, 1, 1, %38;\n}\n" \
            : \
              "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), \
              "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
              "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), \
              "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), \
              "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), \
              "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
              "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), \
              "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(int32_t(IS_TRANSPOSED))); \
        } \
    };
PAGODA_WGMMA_64(bf16, "bf16")
PAGODA_WGMMA_64(f16, "f16")

#define PAGODA_WGMMA_128(T, NAME) \
    template <bool IS_TRANSPOSED> \
    struct WgmmaInstruction<T, 128, IS_TRANSPOSED> { \
        static __device__ __forceinline__ void run(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, int32_t adds) { \
            asm volatile( \
            "{\n.reg .pred adds;\nsetp.ne.b32 adds, %69, 0;\n" \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
            "}, {%64, %65, %66, %67}, %68, adds, 1, 1, %70;\n}\n" \
            : \
              "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), \
              "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
              "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), \
              "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), \
              "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), \
              "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
              "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), \
              "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), \
              "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]), \
              "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), \
              "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]), "+f"(c[10][3]), \
              "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), \
              "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), \
              "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]), \
              "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), \
              "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(int32_t(IS_TRANSPOSED))); \
        } \
    };
PAGODA_WGMMA_128(bf16, "bf16")
PAGODA_WGMMA_128(f16, "f16")

template <class T, uint32_t NUM_COLS, bool IS_TRANSPOSED>
__device__ __forceinline__ void wgmma_m64k16(float (&c)[NUM_COLS / 8][4], const uint32_t (&a)[4], const Panels& b,
                                             bool adds) {
    WgmmaInstruction<T, NUM_COLS, IS_TRANSPOSED>::run(c, a, descriptor_of(b), adds);
}

#endif
