// sm_90: barriers of some of a block's threads, and what orders ordinary accesses to shared memory before those of
// copies and tensor cores. The emulator's bodies are in emulator/barriers.cpp.
#pragma once

#include "shared.h"

#if !defined(__CUDACC__)
#include "cuda/emulator/hopper.h"
#endif

namespace fastconv::FASTCONV_GPU {

inline constexpr int threads_of_group = 128;  // a warpgroup

#if defined(__CUDACC__)

FASTCONV_DEVICE unsigned shared_address(const void* at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

// Orders what a warp's threads wrote to shared memory before what they read next.
FASTCONV_DEVICE void join_lanes() { __syncwarp(); }

// Barrier `id` (1 to 15) of `threads` threads: wait for all of them, or only count as one of them.
FASTCONV_DEVICE void named_wait(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
FASTCONV_DEVICE void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Blocks of a cluster run at the same time and reach each other's shared memory; neighbours along x.
FASTCONV_DEVICE int rank_in_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// A barrier of all its threads.
FASTCONV_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// What this thread wrote to shared memory becomes visible to bulk stores and wgmma; a barrier must follow.
FASTCONV_DEVICE void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of 8 bytes in shared memory that counts arrivals and bytes, phase after phase. Who waits names the parity
// of the phase: 0 for the first, then in turns; waiting for parity 1 before any phase has ended returns at once.
struct Mbarrier {
  uint64_t* data;

  FASTCONV_DEVICE static Mbarrier at(int64_t byte) { return {reinterpret_cast<uint64_t*>(shared_base() + byte)}; }
  FASTCONV_DEVICE Mbarrier operator+(int i) const { return {data + i}; }

  // By one thread; then fence_made(), then a barrier of the block.
  FASTCONV_DEVICE void make(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(data)), "r"(arrivals) : "memory");
  }
  FASTCONV_DEVICE static void fence_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  FASTCONV_DEVICE void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(data)) : "memory");
  }
  // At the barrier that lies there in another block of the cluster.
  FASTCONV_DEVICE void arrive_in(int rank) const {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(data)),
        "r"(rank)
        : "memory");
  }
  // Arrives, and lets the phase end only after so many bytes of bulk copies.
  FASTCONV_DEVICE void arrive_expecting(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(data)), "r"(bytes)
                 : "memory");
  }
  FASTCONV_DEVICE void wait(unsigned parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(data)),
        "r"(parity)
        : "memory");
  }
};

// By all warps of a warpgroup: registers of each of its threads from now on. The sum over a block was set at its
// launch.
template <int Count>
FASTCONV_DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
FASTCONV_DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

#else

inline void join_lanes(Site site = Site::here()) { join_warp(0xffffffffu, site); }
inline void named_wait(int id, int threads, Site site = Site::here()) { meet_named(id, threads, true, site); }
inline void named_arrive(int id, int threads, Site site = Site::here()) { meet_named(id, threads, false, site); }
inline void fence_for_copies() { fence_writes(); }
inline void cluster_barrier(Site site = Site::here()) { meet_cluster(site); }

struct Mbarrier {
  uint64_t* data;

  static Mbarrier at(int64_t byte) { return {reinterpret_cast<uint64_t*>(shared_base() + byte)}; }
  Mbarrier operator+(int i) const { return {data + i}; }
  void make(int arrivals) const { make_barrier(data, arrivals); }
  static void fence_made() { fence_barriers(); }
  void arrive() const { emulated::arrive(data, 0); }
  void arrive_in(int rank) const { emulated::arrive(shared_of(rank, data), 0); }
  void arrive_expecting(int bytes) const { emulated::arrive(data, bytes); }
  void wait(unsigned parity, Site site = Site::here()) const { wait_for_phase(data, parity, site); }
};

template <int Count>
void more_registers(Site site = Site::here()) {
  set_registers(Count, true, site);
}
template <int Count>
void fewer_registers(Site site = Site::here()) {
  set_registers(Count, false, site);
}

#endif

}  // namespace fastconv::FASTCONV_GPU
