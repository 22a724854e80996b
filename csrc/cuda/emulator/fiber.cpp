#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FASTCONV_ASAN 1
#else
#define FASTCONV_ASAN 0
#endif

// swapcontext() asks the kernel for the signal mask twice a switch, which takes longer than what a thread does between
// two barriers. On x86-64 the registers that a call must keep are saved here; elsewhere swapcontext() does.
#if defined(__x86_64__)
#define FASTCONV_OWN_SWITCH 1
asm(R"(
.text
.p2align 4
.local fastconv_switch_stack
.type fastconv_switch_stack, @function
fastconv_switch_stack:
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
.size fastconv_switch_stack, .-fastconv_switch_stack
)");
extern "C" void fastconv_switch_stack(void** save, void* load) asm("fastconv_switch_stack");
#else
#define FASTCONV_OWN_SWITCH 0
#endif

namespace fastconv::emulated {

namespace {

constexpr size_t stack_bytes = FASTCONV_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t saved_registers = 6;  // by fastconv_switch_stack

}  // namespace

struct Fibers::State {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_t pitch = stack_bytes + page;  // a page that nobody may touch lies below each stack
  char* memory = nullptr;
  size_t bytes = 0;
  Main main = nullptr;
  std::vector<void*> contexts;
#if FASTCONV_OWN_SWITCH
  std::vector<void*> saved;
  void* scheduler = nullptr;
#else
  std::vector<ucontext_t> saved;
  ucontext_t scheduler;
#endif
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  void* scheduler_fake = nullptr;

  char* stack(int i) const { return memory + static_cast<size_t>(i) * pitch + page; }

  // What AddressSanitizer must know: from here on the stack is another one.
  void announce([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#if FASTCONV_ASAN
    __sanitizer_start_switch_fiber(fake, bottom, size);
#endif
  }
  void arrived([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* size) {
#if FASTCONV_ASAN
    __sanitizer_finish_switch_fiber(fake, bottom, size);
#endif
  }

  static void begin(State* state, int i) {
    state->arrived(nullptr, &state->scheduler_bottom, &state->scheduler_size);
    state->main(state->contexts[static_cast<size_t>(i)]);
    __builtin_unreachable();
  }
#if FASTCONV_OWN_SWITCH
  static thread_local State* starting;
  static thread_local int starting_index;
  static void trampoline() { begin(starting, starting_index); }
#else
  static void trampoline(unsigned high, unsigned low, int i) {
    begin(reinterpret_cast<State*>(static_cast<uintptr_t>(high) << 32 | low), i);
  }
#endif
};

#if FASTCONV_OWN_SWITCH
thread_local Fibers::State* Fibers::State::starting = nullptr;
thread_local int Fibers::State::starting_index = 0;
#endif

Fibers::Fibers(int count) : count_(count), state_(new State) {
  State& s = *state_;
  s.bytes = static_cast<size_t>(count) * s.pitch;
  void* memory = mmap(nullptr, s.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  s.memory = static_cast<char*>(memory);
  for (int i = 0; i < count; ++i) mprotect(s.stack(i) - s.page, s.page, PROT_NONE);
  s.contexts.resize(static_cast<size_t>(count));
  s.saved.resize(static_cast<size_t>(count));
}

Fibers::~Fibers() { munmap(state_->memory, state_->bytes); }

void Fibers::reset(int i, Main main, void* context) {
  State& s = *state_;
  s.main = main;
  s.contexts[static_cast<size_t>(i)] = context;
#if FASTCONV_ASAN
  __asan_unpoison_memory_region(s.stack(i), stack_bytes);  // a block that failed left its frames there
#endif
#if FASTCONV_OWN_SWITCH
  // As if the trampoline had been about to start when the fiber left; a function starts 8 bytes off 16.
  auto* top = reinterpret_cast<uintptr_t*>(s.stack(i) + stack_bytes) - 2;
  *top = reinterpret_cast<uintptr_t>(&State::trampoline);
  s.saved[static_cast<size_t>(i)] = top - saved_registers;
#else
  ucontext_t& context_of = s.saved[static_cast<size_t>(i)];
  getcontext(&context_of);
  context_of.uc_stack.ss_sp = s.stack(i);
  context_of.uc_stack.ss_size = stack_bytes;
  context_of.uc_link = nullptr;
  const auto address = reinterpret_cast<uintptr_t>(&s);
  makecontext(&context_of, reinterpret_cast<void (*)()>(&State::trampoline), 3, static_cast<unsigned>(address >> 32),
              static_cast<unsigned>(address), i);
#endif
}

void Fibers::enter(int i) {
  State& s = *state_;
  s.announce(&s.scheduler_fake, s.stack(i), stack_bytes);
#if FASTCONV_OWN_SWITCH
  State::starting = &s, State::starting_index = i;
  fastconv_switch_stack(&s.scheduler, s.saved[static_cast<size_t>(i)]);
#else
  swapcontext(&s.scheduler, &s.saved[static_cast<size_t>(i)]);
#endif
  s.arrived(s.scheduler_fake, nullptr, nullptr);
}

void Fibers::leave(int i, bool last) {
  State& s = *state_;
  void* fake = nullptr;
  s.announce(last ? nullptr : &fake, s.scheduler_bottom, s.scheduler_size);
#if FASTCONV_OWN_SWITCH
  fastconv_switch_stack(&s.saved[static_cast<size_t>(i)], s.scheduler);
#else
  swapcontext(&s.saved[static_cast<size_t>(i)], &s.scheduler);
#endif
  s.arrived(fake, &s.scheduler_bottom, &s.scheduler_size);
}

}  // namespace fastconv::emulated
