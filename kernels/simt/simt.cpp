// The scheduler of simt.h: runs one block at a time, its threads as fibers, from yield to yield.
#include "simt.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_unpoison_memory_region(const volatile void* address, size_t size);
#endif

namespace simt {

__thread Thread self;

namespace {

constexpr uint32_t MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr uint32_t MAX_COPIES = 512;

enum class Order : uint32_t { Forward, Reverse, Random };

struct AsyncCopy {
    char* to;
    const char* from;
    uint32_t num_bytes, num_valid, group;
};

struct Fiber {
    Context context;
    Thread self;
    enum class State { Ready, AtBarrier, AtMbarrier, AtWarpOperation, Done } state;
    WarpOperation operation;
    uint32_t mask;
    void* argument;
    uint32_t group;  // of cp.async: the one that the next commit closes
    uint32_t num_copies;
    AsyncCopy copies[MAX_COPIES];
};

// A barrier in shared memory, in the eight bytes that it has on the device.
struct BarrierState {
    int32_t num_bytes;  // still to come
    uint8_t num_expected, num_arrived, phase, mark;
};
constexpr uint8_t INITIALISED = 0xB1;
constexpr uint32_t BOX_ROWS = 16, BOX_BYTES = 128;  // of hopper.cuh
constexpr uint32_t MAX_BOXES = 512;

struct Machine {
    Context main;
    Fiber* fibers = static_cast<Fiber*>(malloc(MAX_THREADS * sizeof(Fiber)));
    char* stacks = static_cast<char*>(aligned_alloc(4096, MAX_THREADS * STACK_BYTES));
    uint32_t num_threads = 0, num_done = 0, num_at_barrier = 0;
    uint32_t current = 0;
    uint64_t ready[MAX_THREADS / 64] = {};  // one bit per thread that may run
    Order order = Order::Forward;
    uint64_t random = 0;
    void (*kernel)(const void*) = nullptr;
    const void* params = nullptr;
    char* shared = nullptr;
    uint32_t shared_bytes = 0;
    uint32_t num_boxes = 0;
    TensorCopy boxes[MAX_BOXES];
};

// Made at an OS thread's first launch, and kept: a test process has few threads.
__thread Machine* machine;

uint32_t random_below(uint32_t end) {
    machine->random = machine->random * 6364136223846793005u + 1442695040888963407u;
    return uint32_t((machine->random >> 33) % end);
}

void make_ready(uint32_t thread) {
    machine->fibers[thread].state = Fiber::State::Ready;
    machine->ready[thread / 64] |= uint64_t(1) << thread % 64;
}

// The first ready thread from `start` on, then from 0; MAX_THREADS if there is none.
uint32_t next_ready_from(uint32_t start) {
    constexpr uint32_t WORDS = MAX_THREADS / 64;
    for (uint32_t index = 0; index <= WORDS; ++index) {
        const uint32_t word = (start / 64 + index) % WORDS;
        uint64_t bits = machine->ready[word];
        if (index == 0) bits &= ~uint64_t(0) << start % 64;
        if (bits) return word * 64 + uint32_t(__builtin_ctzll(bits));
    }
    return MAX_THREADS;
}

uint32_t last_ready() {
    for (uint32_t word = MAX_THREADS / 64; word-- > 0;) {
        if (machine->ready[word]) return word * 64 + 63 - uint32_t(__builtin_clzll(machine->ready[word]));
    }
    return MAX_THREADS;
}

// Takes the thread that runs next. The lowest (or highest) that may, not the one that has waited longest: so a warp runs as
// far ahead of the others as the barriers let it, which is what a missing barrier must survive.
uint32_t take_next() {
    uint32_t thread = MAX_THREADS;
    switch (machine->order) {
        case Order::Forward: thread = next_ready_from(0); break;
        case Order::Reverse: thread = last_ready(); break;
        case Order::Random: thread = next_ready_from(random_below(machine->num_threads)); break;
    }
    if (thread < MAX_THREADS) machine->ready[thread / 64] &= ~(uint64_t(1) << thread % 64);
    return thread;
}

void release_barrier_if_complete() {
    if (machine->num_at_barrier == 0 || machine->num_at_barrier + machine->num_done < machine->num_threads) return;
    machine->num_at_barrier = 0;
    for (uint32_t thread = 0; thread < machine->num_threads; ++thread) {
        if (machine->fibers[thread].state == Fiber::State::AtBarrier) make_ready(thread);
    }
}

[[noreturn]] void report_deadlock() {
    uint32_t num_at_operation = 0, num_at_mbarrier = 0;
    for (uint32_t thread = 0; thread < machine->num_threads; ++thread) {
        num_at_operation += machine->fibers[thread].state == Fiber::State::AtWarpOperation;
        num_at_mbarrier += machine->fibers[thread].state == Fiber::State::AtMbarrier;
    }
    fail("threads wait for others that never come: of %u, %u are at the barrier, %u at barriers in memory, %u at a warp "
         "operation, %u have ended",
         machine->num_threads, machine->num_at_barrier, num_at_mbarrier, num_at_operation, machine->num_done);
}

// Runs the next thread; the current one is in no queue unless it is ready.
void run_next() {
    Context& from = machine->fibers[machine->current].context;
    const uint32_t next = take_next();
    if (next == MAX_THREADS) {
        if (machine->num_done < machine->num_threads) report_deadlock();
        switch_to(from, machine->main);
        return;
    }
    if (next == machine->current) return;
    machine->current = next;
    switch_to(from, machine->fibers[next].context);
}

// Back in a thread: its indices are what the kernel sees.
void resume() { self = machine->fibers[machine->current].self; }

void fiber_main() {
    arrived(machine->main);
    resume();
    machine->kernel(machine->params);
    Fiber& fiber = machine->fibers[machine->current];
    if (fiber.num_copies > 0) fail("a thread ended with %u asynchronous copies that nobody waited for", fiber.num_copies);
    fiber.state = Fiber::State::Done;
    ++machine->num_done;
    release_barrier_if_complete();
    run_next();
    abort();  // nobody switches to a thread that is done
}

BarrierState& barrier_at(void* address) {
    auto* barrier = static_cast<BarrierState*>(address);
    if (barrier->mark != INITIALISED) fail("a barrier is used before it is initialised");
    return *barrier;
}

// They look again at what they wait for.
void wake_waiters() {
    for (uint32_t thread = 0; thread < machine->num_threads; ++thread) {
        if (machine->fibers[thread].state == Fiber::State::AtMbarrier) make_ready(thread);
    }
}

// Ends the phase if nothing is missing any more.
void end_phase_if_complete(BarrierState& barrier) {
    if (barrier.num_arrived < barrier.num_expected || barrier.num_bytes != 0) return;
    barrier.phase ^= 1;
    barrier.num_arrived = 0;
    wake_waiters();
}

// Lets the boxes of a barrier arrive.
void land_boxes(void* address) {
    BarrierState& barrier = barrier_at(address);
    uint32_t num_left = 0;
    for (uint32_t index = 0; index < machine->num_boxes; ++index) {
        const TensorCopy box = machine->boxes[index];
        if (box.barrier != address) {
            machine->boxes[num_left++] = box;
            continue;
        }
        const char* from = reinterpret_cast<const char*>(box.map[0]) + (size_t(box.row) * box.map[2] + box.col) * 2;
        const auto offset = uint32_t(box.to - machine->shared);
        for (uint32_t piece = 0; piece < BOX_ROWS * BOX_BYTES; piece += 16) {
            const char* row = from + piece / BOX_BYTES * box.map[2] * 2;
            memcpy(machine->shared + swizzled(offset + piece), row + piece % BOX_BYTES, 16);
        }
        barrier.num_bytes -= int32_t(BOX_ROWS * BOX_BYTES);
    }
    if (num_left == machine->num_boxes) return;
    machine->num_boxes = num_left;
    end_phase_if_complete(barrier);
}

void run_block(Index block, Index grid, uint32_t num_threads) {
    memset(machine->shared, 0xFF, machine->shared_bytes);
#if defined(__SANITIZE_ADDRESS__)
    // A thread that ended never returned from its frames: their marks are still there.
    __asan_unpoison_memory_region(machine->stacks, num_threads * STACK_BYTES);
#endif
    machine->num_threads = num_threads;
    machine->num_done = machine->num_at_barrier = machine->num_boxes = 0;
    for (uint32_t thread = 0; thread < num_threads; ++thread) {
        Fiber& fiber = machine->fibers[thread];
        prepare(fiber.context, machine->stacks + thread * STACK_BYTES, STACK_BYTES, fiber_main);
        fiber.self = {{thread, 0, 0}, block, {num_threads, 1, 1}, grid, machine->shared};
        fiber.group = fiber.num_copies = 0;
        make_ready(thread);
    }
    machine->current = take_next();
    switch_to(machine->main, machine->fibers[machine->current].context);
    if (machine->num_boxes > 0) fail("a block ended with %u boxes that nobody waited for", machine->num_boxes);
}

}  // namespace

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "simt: block (%u, %u, %u) thread %u: ", self.block.x, self.block.y, self.block.z, self.thread.x);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    fflush(stderr);
    _exit(99);
}

void block_barrier() {
    machine->fibers[machine->current].state = Fiber::State::AtBarrier;
    ++machine->num_at_barrier;
    release_barrier_if_complete();
    run_next();
    resume();
}

void warp_operation(uint32_t mask, WarpOperation operation, void* argument) {
    Fiber& mine = machine->fibers[machine->current];
    mine.state = Fiber::State::AtWarpOperation;
    mine.operation = operation;
    mine.mask = mask;
    mine.argument = argument;
    const uint32_t first = machine->current / 32 * 32;
    if (!(mask >> (machine->current - first) & 1)) fail("a lane is not in the mask 0x%08x of its own operation", mask);
    void* arguments[32] = {};
    bool is_complete = true;
    for (uint32_t lane = 0; lane < 32 && is_complete; ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (first + lane >= machine->num_threads) fail("mask 0x%08x names a lane that does not exist", mask);
        const Fiber& other = machine->fibers[first + lane];
        is_complete = other.state == Fiber::State::AtWarpOperation;
        if (is_complete && (other.mask != mask || other.operation != operation)) {
            fail("lanes of one warp meet at different operations or masks");
        }
        arguments[lane] = other.argument;
    }
    if (is_complete) {
        operation(arguments);
        for (uint32_t lane = 0; lane < 32; ++lane) {
            if (mask >> lane & 1) make_ready(first + lane);
        }
    }
    run_next();
    resume();
}

void mbarrier_init(void* address, uint32_t num_arrivals) {
    *static_cast<BarrierState*>(address) = {0, uint8_t(num_arrivals), 0, 0, INITIALISED};
    if (num_arrivals == 0 || num_arrivals > 0xFF) fail("a barrier of %u arrivals", num_arrivals);
}

void mbarrier_arrive(void* address, uint32_t num_bytes) {
    BarrierState& barrier = barrier_at(address);
    if (barrier.num_arrived == barrier.num_expected) fail("more arrivals than the barrier's phase expects");
    ++barrier.num_arrived;
    barrier.num_bytes += int32_t(num_bytes);
    end_phase_if_complete(barrier);
}

void mbarrier_wait(void* address, uint32_t parity) {
    while (barrier_at(address).phase == parity) {
        land_boxes(address);
        if (barrier_at(address).phase != parity) return;
        machine->fibers[machine->current].state = Fiber::State::AtMbarrier;
        run_next();
        resume();
    }
}

void tensor_copy(const TensorCopy& copy) {
    barrier_at(copy.barrier);
    const auto offset = copy.to - machine->shared;
    if (offset < 0 || offset % 1024 || offset + BOX_ROWS * BOX_BYTES > machine->shared_bytes) {
        fail("a box goes to offset %td of %u bytes", offset, machine->shared_bytes);
    }
    const auto rows = uint64_t(copy.row) + BOX_ROWS, cols = uint64_t(copy.col) + BOX_BYTES / 2;
    if (copy.row < 0 || copy.col < 0 || rows > copy.map[1] || cols > copy.map[2]) {
        fail("the box at (%d, %d) is not within the matrix", copy.row, copy.col);
    }
    if (machine->num_boxes == MAX_BOXES) fail("more than %u boxes in flight", MAX_BOXES);
    memset(copy.to, 0xFF, BOX_ROWS * BOX_BYTES);
    machine->boxes[machine->num_boxes++] = copy;
    wake_waiters();
}

void copy_async(void* to, const void* from, uint32_t num_bytes, uint32_t num_valid) {
    Fiber& fiber = machine->fibers[machine->current];
    const auto offset = static_cast<char*>(to) - machine->shared;
    if (offset < 0 || offset + num_bytes > machine->shared_bytes) fail("cp.async writes beyond the shared memory");
    if (reinterpret_cast<uintptr_t>(to) % num_bytes || (num_valid && reinterpret_cast<uintptr_t>(from) % num_bytes)) {
        fail("cp.async of %u bytes is not aligned", num_bytes);
    }
    if (fiber.num_copies == MAX_COPIES) fail("more than %u copies in flight", MAX_COPIES);
    memset(to, 0xFF, num_bytes);
    fiber.copies[fiber.num_copies++] = {static_cast<char*>(to), static_cast<const char*>(from), num_bytes, num_valid,
                                        fiber.group};
}

void copy_async_commit() { ++machine->fibers[machine->current].group; }

void copy_async_wait(uint32_t num_pending) {
    Fiber& fiber = machine->fibers[machine->current];
    uint32_t num_left = 0;
    for (uint32_t index = 0; index < fiber.num_copies; ++index) {
        const AsyncCopy copy = fiber.copies[index];
        if (copy.group + num_pending >= fiber.group) {
            fiber.copies[num_left++] = copy;
            continue;
        }
        if (copy.num_valid) memcpy(copy.to, copy.from, copy.num_valid);
        memset(copy.to + copy.num_valid, 0, copy.num_bytes - copy.num_valid);
    }
    fiber.num_copies = num_left;
}

}  // namespace simt

// What the host says of a launch; mirrored in crates/pagoda-kernels-host.
struct SimtLaunch {
    uint32_t grid[3];
    uint32_t num_threads;
    uint32_t shared_bytes;
    uint32_t order;  // 0 forward, 1 reverse, 2 random
    uint64_t seed;
};

// Runs every block of a launch, in the order of its threads. Ends the process if the kernel breaks a rule.
extern "C" void simt_launch(void (*kernel)(const void*), const void* params, const SimtLaunch* launch) {
    using namespace simt;
    if (launch->num_threads == 0 || launch->num_threads > MAX_THREADS) fail("%u threads in a block", launch->num_threads);
    if (!machine) machine = new Machine;
    machine->kernel = kernel;
    machine->params = params;
    machine->order = Order(launch->order);
    machine->random = launch->seed;
    machine->shared_bytes = launch->shared_bytes;
    void* shared = nullptr;
    if (posix_memalign(&shared, 1024, launch->shared_bytes) != 0) fail("no memory");
    machine->shared = static_cast<char*>(shared);
    const Index grid{launch->grid[0], launch->grid[1], launch->grid[2]};
    const uint64_t num_blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t index = 0; index < num_blocks; ++index) {
        const uint64_t turn = machine->order == Order::Reverse ? num_blocks - 1 - index : index;
        const Index block{uint32_t(turn % grid.x), uint32_t(turn / grid.x % grid.y), uint32_t(turn / grid.x / grid.y)};
        run_block(block, grid, launch->num_threads);
    }
    free(machine->shared);
}
