// Stackful fibers by a register switch. ucontext would do a system call per switch (486 ns against 54 ns under ASan, which
// also warns of it). x86-64 System V only.
#pragma once

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
#endif

namespace simt {

// Where a fiber, or the thread that runs the fibers, left off.
struct Context {
    void* stack_pointer = nullptr;
    const void* bottom = nullptr;  // lowest address of the stack
    size_t size = 0;
    void* fake_stack = nullptr;  // the address sanitizer's
};

extern "C" void simt_switch(void** save_stack_pointer, void* load_stack_pointer);

asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");

// Leaves `from` for `to`; returns when somebody switches back.
inline void switch_to(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
    simt_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Makes a fiber that starts in `entry`, which must call `arrived` first and never return.
inline void prepare(Context& fiber, void* stack, size_t size, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(static_cast<char*>(stack) + size);
    *--top = nullptr;                          // keeps `entry`'s frame aligned: it starts as if called
    *--top = reinterpret_cast<void*>(entry);   // `ret` goes there
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fiber = {top, stack, size, nullptr};
}

// The first thing a fiber does. Remembers the stack of the thread that started the first fiber.
inline void arrived(Context& main) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!main.bottom) main.bottom = bottom, main.size = size;
#else
    (void)main;
#endif
}

}  // namespace simt
