// Memory of exactly the size that the C ABI promises to stay in, for the programs that the sanitizers watch.
#ifndef ASVP_TESTS_BUFFER_H_
#define ASVP_TESTS_BUFFER_H_

#include <stdlib.h>
#include <string.h>

#include <memory>

#include "asvp.h"

inline int element_bytes(int dtype) { return dtype == ASVP_FLOAT64 ? 8 : dtype == ASVP_FLOAT32 ? 4 : 2; }

// Bytes from the first element of a map to behind its last.
inline size_t bytes_of(const asvp_problem& p) {
  const auto reach = [](int64_t count, int64_t stride) { return count > 1 ? (count - 1) * stride : 0; };
  return static_cast<size_t>(element_bytes(p.dtype)) *
         static_cast<size_t>(reach(p.n, p.sample_stride) + reach(p.c, p.channel_stride) + reach(p.l, p.position_stride) + 1);
}

// `bytes` at an address that misses an alignment by `offset`; what lies behind is the sanitizer's.
struct Buffer {
  Buffer(size_t bytes, size_t offset, size_t alignment = 64) : size(bytes) {
    void* raw = nullptr;
    if (posix_memalign(&raw, alignment, bytes + offset)) abort();
    memory.reset(static_cast<unsigned char*>(raw));
    data = memory.get() + offset;
    memset(memory.get(), 0xFF, bytes + offset);  // NaN in every type: nothing counts on zeros
  }
  struct Free {
    void operator()(void* p) const { free(p); }
  };
  std::unique_ptr<unsigned char, Free> memory;
  unsigned char* data;
  size_t size;
};

#endif  // ASVP_TESTS_BUFFER_H_
