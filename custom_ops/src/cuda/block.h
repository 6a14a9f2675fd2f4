// One block of threads, twice: as the GPU runs it, and as a CPU runs the same code for the tests.
//
// A kernel's body is a template on the block. It advances in phases: `block.each(f)` calls f(thread) for every thread and
// then waits for all of them. On the GPU that is f(threadIdx.x) and a barrier; on the CPU a loop. The rules that make both
// the same:
//
// - Shared and global memory are written inside phases only. In one phase no thread reads what another one writes.
// - What a thread carries from phase to phase lies in a `Per<T>`: a register on the GPU, an array on the CPU.
// - Control flow between phases is the same for all threads. A value that decides it, and that a later phase overwrites, is
//   read through `uniform`, which ends with a barrier of its own.
//
// The CPU can take threads, warps and blocks in any order; the tests do, and demand the same bits.
#ifndef ASVP_CUDA_BLOCK_H_
#define ASVP_CUDA_BLOCK_H_

#include <stddef.h>
#include "../decide.h"
#include <stdint.h>

#if defined(__CUDACC__)
#define ASVP_DEVICE __device__ __forceinline__  // whatever takes a block; plans and scalars are ASVP_HD
#define ASVP_UNROLL _Pragma("unroll")
#define ASVP_UNROLL_8 _Pragma("unroll 8")
#define ASVP_RARE __device__ __noinline__  // kept out of the way, and compiled once
#else
#define ASVP_DEVICE inline
#define ASVP_RARE inline
#define ASVP_UNROLL
#define ASVP_UNROLL_8
#include <vector>
#endif

namespace asvp {
namespace cuda {

constexpr int kWarp = 32;

// The same value, but what follows from it is worked out from here on, not before a loop or a branch: the compiler would keep
// it in registers that others need.
ASVP_HD int anew(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("mov.b32 %0, %0;" : "+r"(value));
#endif
  return value;
}
ASVP_HD float anew(float value) {
#if defined(__CUDA_ARCH__)
  asm volatile("mov.b32 %0, %0;" : "+f"(value));
#endif
  return value;
}

#if defined(__CUDACC__)

// ---------------------------------------------------------------- the GPU

class DeviceWarp {
 public:
  template <class T>
  struct Per {
    T value;
    __device__ __forceinline__ T& operator[](int) { return value; }
  };
  __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x) / kWarp; }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    f(static_cast<int>(threadIdx.x) % kWarp);
    __syncwarp();
  }
  // In every lane, the sum over the lanes of its group of `Width`, the same bits in all of them.
  template <int Width>
  __device__ __forceinline__ void sum(Per<double>& terms) const {
    ASVP_UNROLL for (int step = Width / 2; step > 0; step /= 2)
      terms.value += __shfl_xor_sync(0xffffffffu, terms.value, step);
  }
  __device__ __forceinline__ double sum(Per<double>& terms) const {
    sum<kWarp>(terms);
    return terms.value;
  }
  // Where all groups of 8 lanes hold the same.
  __device__ __forceinline__ double sum_of_eight(Per<double>& terms) const {
    sum<8>(terms);
    return terms.value;
  }
};

class DeviceBlock {
 public:
  template <class T>
  struct Per {
    __device__ __forceinline__ explicit Per(const DeviceBlock&) {}
    __device__ __forceinline__ T& operator[](int) { return value; }
    T value = {};  // or what is not written in every turn of a loop around it would be kept from one turn to the next
  };
  __device__ __forceinline__ int size() const { return static_cast<int>(blockDim.x); }
  template <class T>
  __device__ __forceinline__ T* shared(int64_t bytes = 0) const {
    extern __shared__ uint4 asvp_shared[];
    return reinterpret_cast<T*>(reinterpret_cast<char*>(asvp_shared) + bytes);
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class F>
  __device__ __forceinline__ void warps(F f) const {
    f(DeviceWarp());
    __syncthreads();
  }
  template <class T>
  __device__ __forceinline__ T uniform(const T* place) const {
    const T value = *static_cast<const volatile T*>(place);
    __syncthreads();
    return value;
  }
  // Whether this block is the last of `count` to come here. What the others wrote before is then to be read with `fresh`.
  __device__ __forceinline__ bool last(uint32_t* arrived, uint32_t count) const {
    __shared__ bool is_last;
    __threadfence();  // every thread: what it wrote comes before the count
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1u) == count - 1;
    __syncthreads();
    __threadfence();
    return is_last;
  }
};

__device__ __forceinline__ double fresh(const double* place) { return __ldcg(place); }
__device__ __forceinline__ void atomic_max(uint64_t* place, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(value));
}

#else

// ---------------------------------------------------------------- the same on a CPU

class HostWarp {
 public:
  template <class T>
  struct Per {
    T values[kWarp];
    T& operator[](int lane) { return values[lane]; }
  };
  HostWarp(int index, bool backwards) : index_(index), backwards_(backwards) {}
  int index() const { return index_; }
  template <class F>
  void each(F f) const {
    for (int i = 0; i < kWarp; ++i) f(backwards_ ? kWarp - 1 - i : i);
  }
  template <int Width>
  void sum(Per<double>& terms) const {
    for (int step = Width / 2; step > 0; step /= 2) {
      Per<double> old = terms;
      for (int i = 0; i < kWarp; ++i) terms[i] = old[i] + old[i ^ step];
    }
  }
  double sum(Per<double>& terms) const {
    sum<kWarp>(terms);
    return terms[0];
  }
  double sum_of_eight(Per<double>& terms) const {
    sum<8>(terms);
    return terms[0];
  }

 private:
  int index_;
  bool backwards_;
};

class HostBlock {
 public:
  template <class T>
  class Per {
   public:
    explicit Per(const HostBlock& block) : values_(static_cast<size_t>(block.size())) {}
    T& operator[](int thread) { return values_[static_cast<size_t>(thread)]; }

   private:
    std::vector<T> values_;
  };
  HostBlock(int size, char* shared, bool backwards) : size_(size), shared_(shared), backwards_(backwards) {}
  int size() const { return size_; }
  template <class T>
  T* shared(int64_t bytes = 0) const { return reinterpret_cast<T*>(shared_ + bytes); }
  template <class F>
  void each(F f) const {
    for (int i = 0; i < size_; ++i) f(backwards_ ? size_ - 1 - i : i);
  }
  template <class F>
  void warps(F f) const {
    const int count = size_ / kWarp;
    for (int i = 0; i < count; ++i) f(HostWarp(backwards_ ? count - 1 - i : i, backwards_));
  }
  template <class T>
  T uniform(const T* place) const { return *place; }
  bool last(uint32_t* arrived, uint32_t count) const { return (*arrived)++ == count - 1; }

 private:
  int size_;
  char* shared_;
  bool backwards_;
};

inline double fresh(const double* place) { return *place; }
inline void atomic_max(uint64_t* place, uint64_t value) { *place = value > *place ? value : *place; }

#endif

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_BLOCK_H_
