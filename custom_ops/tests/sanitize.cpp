// What the sanitizers watch: "sweep" runs shapes, types and layouts on buffers of exactly the size that is promised, "threads"
// runs many calls at once. Results are held against those of one thread; whether they are right is for tests/ in Python.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <thread>
#include <vector>

#include "asvp.h"
#include "buffer.h"
#include "threads.h"

namespace {

uint32_t noise(uint32_t& seed) { return seed = seed * 1664525u + 1013904223u; }

void fill(const asvp_problem& p, Buffer& x, uint32_t seed) {
  const int width = element_bytes(p.dtype);
  for (size_t i = 0; i < x.size / width; ++i) {
    const float value = static_cast<float>(noise(seed) >> 8) * 0x1p-23f - 1.0f;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const double wide = value;
    const uint16_t half = static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x3000 | (noise(seed) >> 20 & 0x3ff));
    const uint16_t brain = static_cast<uint16_t>(bits >> 16);
    const void* from = p.dtype == ASVP_FLOAT32   ? static_cast<const void*>(&value)
                       : p.dtype == ASVP_FLOAT64 ? static_cast<const void*>(&wide)
                       : p.dtype == ASVP_FLOAT16 ? static_cast<const void*>(&half)
                                                 : static_cast<const void*>(&brain);
    memcpy(x.data + i * width, from, width);
  }
}

void call(const asvp_problem& p, const Buffer& x, Buffer& y, asvp_parallel_for parallel_for, void* host) {
  Buffer workspace(asvp_workspace_cpu(&p), 0);
  const asvp_status status = asvp_perturb_cpu(&p, x.data, y.data, workspace.data, workspace.size, parallel_for, host);
  if (status != ASVP_OK) {
    fprintf(stderr, "status %d: %s\n", status, asvp_check(&p));
    exit(1);
  }
}

void call(const asvp_problem& p, const Buffer& x, Buffer& y, Threads* threads) {
  call(p, x, y, threads ? Threads::run : nullptr, threads);
}

// In place of an OpenMP library's GOMP_parallel, whose own barriers a sanitizer does not see.
void team(void (*body)(void*), void* argument, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, argument);
  body(argument);
  for (auto& other : others) other.join();
}

asvp_problem problem(int64_t n, int64_t c, int64_t l, int layout, asvp_dtype dtype, int64_t rank, double energy) {
  const int64_t strides[3][3] = {{c * l, l, 1}, {c * l, 1, c}, {2 * c * l + 5, 2 * l, 2}};
  return {n, c, l, strides[layout][0], strides[layout][1], strides[layout][2], dtype, rank, 3.0, energy};
}

int sweep() {
  const int64_t shapes[][3] = {{1, 1, 1}, {1, 1, 1000}, {2, 3, 7}, {1, 5, 513}, {3, 17, 100}, {1, 33, 3001}, {1, 64, 9000},
                               {2, 97, 1100}, {1, 130, 2}, {1, 7, 20011}, {70, 4, 33}};
  Threads threads(3);
  int cases = 0;
  for (const auto& shape : shapes)
    for (int dtype = 0; dtype < 4; ++dtype)
      for (int layout = 0; layout < 3; ++layout)
        for (int variant = 0; variant < 3; ++variant) {
          const asvp_problem p = problem(shape[0], shape[1], shape[2], layout, static_cast<asvp_dtype>(dtype),
                                         variant == 0 ? 1 : variant == 1 ? 6 : 1000, variant == 1 ? 0.8 : 1.0);
          if (variant == 2 && shape[1] > 40) continue;
          const size_t bytes = bytes_of(p), offset = cases % 3 == 1 ? element_bytes(p.dtype) : cases % 3;
          Buffer x(bytes, offset), y(bytes, offset), z(bytes, 0);
          fill(p, x, static_cast<uint32_t>(cases));
          call(p, x, y, nullptr);
          call(p, x, z, &threads);
          if (memcmp(y.data, z.data, bytes)) return fprintf(stderr, "case %d depends on threads\n", cases), 1;
          memcpy(z.data, x.data, bytes);
          call(p, z, z, nullptr);
          const size_t gaps = layout == 2;  // what lies between the elements of y was never written
          if (!gaps && memcmp(y.data, z.data, bytes)) return fprintf(stderr, "case %d differs in place\n", cases), 1;
          ++cases;
        }
  printf("%s: %d cases\n", asvp_cpu_kernels(), cases);
  return 0;
}

// Every way through the stages: few and many chunks, more samples than working sets, Lanczos, stores past the caches; `alike`:
// channels that are all the same, where the float32 Gram matrix is summed again in float64.
struct Case {
  asvp_problem problem;
  bool alike;
};

std::vector<Case> cases_of(int host) {
  std::vector<Case> cases;
  for (int round = 0; round < 4; ++round) {
    const asvp_dtype dtype = static_cast<asvp_dtype>(round % 4);
    cases.push_back({problem(1 + round, 12 + 9 * host, 4000, round % 2, dtype, 3, 1.0), false});
    cases.push_back({problem(70, 3, 20 + host, (round + host) % 3, dtype, 2, 0.9), false});
  }
  cases.push_back({problem(2, 9, 4000, 0, ASVP_FLOAT32, 3, 1.0), true});
  cases.push_back({problem(1, 228, 1300, 0, ASVP_FLOAT32, 4, 1.0), false});
  cases.push_back({problem(1, 8, 140000, 0, ASVP_FLOAT32, 2, 1.0), false});
  return cases;
}

// Four hosts with two threads each and their own maps, from the very first call of the process on; and as OpenMP lends them.
int concurrent() {
  std::vector<std::thread> hosts;
  std::atomic<int> wrong{0};
  for (int host = 0; host < 4; ++host)
    hosts.emplace_back([host, &wrong] {
      Threads threads(2);
      asvp_openmp openmp = {team, 2};
      for (const Case& one : cases_of(host)) {
        const asvp_problem& p = one.problem;
        const size_t bytes = bytes_of(p), row = static_cast<size_t>(p.l * element_bytes(p.dtype));
        Buffer x(bytes, 0), y(bytes, 0), z(bytes, 0), of_openmp(bytes, 0);
        fill(p, x, static_cast<uint32_t>(host));
        for (size_t at = row; one.alike && at < bytes; at += row) memcpy(x.data + at, x.data, row);
        call(p, x, y, &threads);
        call(p, x, z, nullptr);
        call(p, x, of_openmp, asvp_openmp_for, &openmp);
        if (memcmp(y.data, z.data, bytes) || memcmp(of_openmp.data, z.data, bytes)) ++wrong;
      }
    });
  for (auto& host : hosts) host.join();
  printf("%s: %d wrong\n", asvp_cpu_kernels(), wrong.load());
  return wrong.load() != 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "sweep") return sweep();
  if (what == "threads") return concurrent();
  fprintf(stderr, "usage: asvp_sanitize sweep|threads\n");
  return 2;
}
