// The C ABI on problems of every kind: refused for a reason, or computed as docs/concepts/operator.md has it, inside the memory that
// was lent, to the same bits whatever the order of the tasks. With FUZZ_EMULATED: CUDA's kernels, as a CPU runs them
// (tests/cuda_emulated.cpp).
#include <math.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "../tests/buffer.h"
#include "asvp.h"
#include "oracle.h"
#include "reader.h"
#include "values.h"

#if defined(FUZZ_EMULATED)

extern "C" size_t asvp_workspace_cuda_emulated(const asvp_problem* problem);
extern "C" int asvp_perturb_cuda_emulated(const asvp_problem* problem, const void* x, void* y, void* workspace, int order);

namespace {

constexpr bool kAnyAddress = false;  // CUDA's kernels want the alignment of an element

size_t workspace_of(const asvp_problem& p) { return asvp_check(&p) ? 0 : asvp_workspace_cuda_emulated(&p); }

// 0: as it comes; others: some order of blocks and threads.
asvp_status perturb(const asvp_problem& p, const void* x, void* y, Buffer& workspace, int order) {
  if (asvp_check(&p)) return ASVP_BAD_ARGUMENT;
  return static_cast<asvp_status>(asvp_perturb_cuda_emulated(&p, x, y, workspace.data, order));
}

#else

namespace {

constexpr bool kAnyAddress = true;

size_t workspace_of(const asvp_problem& p) { return asvp_workspace_cpu(&p); }

// Hosts: the tasks from the last one to the first, and in steps.
void backwards(void*, asvp_task task, size_t count, void* argument) {
  for (size_t i = count; i > 0; --i) task(argument, i - 1);
}
void in_steps(void* step, asvp_task task, size_t count, void* argument) {
  const size_t every = *static_cast<size_t*>(step);
  for (size_t first = 0; first < every; ++first)
    for (size_t i = first; i < count; i += every) task(argument, i);
}

// 0: one task after the other; 1: backwards; others: in steps.
asvp_status perturb(const asvp_problem& p, const void* x, void* y, Buffer& workspace, int order) {
  size_t step = static_cast<size_t>(order);
  const asvp_parallel_for hosts[] = {nullptr, backwards, in_steps};
  return asvp_perturb_cpu(&p, x, y, workspace.data, workspace.size, hosts[order < 2 ? order : 2], &step);
}

#endif

// ---------------------------------------------------------------- any description at all

// Whether a sample's elements and the samples lie within what an address can reach.
bool reachable(const asvp_problem& p) {
  const auto reach = [](int64_t count, int64_t stride) { return count > 1 ? static_cast<__int128>(count - 1) * stride : 0; };
  const __int128 last = reach(p.n, p.sample_stride) + reach(p.c, p.channel_stride) + reach(p.l, p.position_stride);
  return (last + 1) * element_bytes(p.dtype) <= INT64_MAX;
}

void describe(Reader& in) {
  asvp_problem p = {in.integer(), in.integer(), in.integer(), in.integer(), in.integer(), in.integer(),
                    static_cast<int>(in.one_in(4) ? in.integer() : in.below(4)), in.integer(), in.real(), in.real()};
  alignas(64) static unsigned char memory[128];
  void* const nowhere = reinterpret_cast<void*>(64);  // must not be touched
  const char* reason = asvp_check(&p);
  const size_t bytes = asvp_workspace_cpu(&p);
  const bool empty = p.n == 0 || p.c == 0 || p.l == 0;
  REQUIRE(!reason || *reason, "an empty reason");
  REQUIRE((bytes == 0) == (reason || empty), "%zu bytes for %s", bytes, reason ? reason : "a good problem");
  REQUIRE(reason || empty || reachable(p), "elements beyond all addresses are accepted");
  REQUIRE(static_cast<int64_t>(bytes) >= 0, "%zu bytes", bytes);
  if (!reason && !empty) REQUIRE(static_cast<int64_t>(workspace_of(p)) > 0, "%zu bytes", workspace_of(p));
  const asvp_status wanted = reason ? ASVP_BAD_ARGUMENT : empty ? ASVP_OK : ASVP_BAD_WORKSPACE;
  REQUIRE(asvp_perturb_cpu(&p, nowhere, nowhere, nullptr, bytes, nullptr, nullptr) == wanted, "no workspace");
  REQUIRE(asvp_perturb_cpu(&p, nowhere, nowhere, memory, 0, nullptr, nullptr) == wanted, "a workspace of no bytes");
  REQUIRE(asvp_perturb_cpu(&p, nowhere, nowhere, memory + 1 + in.below(63), SIZE_MAX, nullptr, nullptr) == wanted,
          "an unaligned workspace");
  if (bytes) REQUIRE(asvp_perturb_cpu(&p, nowhere, nowhere, memory, bytes - 1, nullptr, nullptr) == wanted, "a byte less");
  const asvp_status unread = wanted == ASVP_OK ? ASVP_OK : ASVP_BAD_ARGUMENT;
  REQUIRE(asvp_perturb_cpu(&p, nullptr, nowhere, memory, SIZE_MAX, nullptr, nullptr) == unread, "no input");
  REQUIRE(asvp_perturb_cpu(&p, nowhere, nullptr, memory, SIZE_MAX, nullptr, nullptr) == unread, "no output");
  REQUIRE(asvp_perturb_cpu(nullptr, nowhere, nowhere, memory, SIZE_MAX, nullptr, nullptr) == ASVP_BAD_ARGUMENT, "no problem");
  REQUIRE(asvp_check(nullptr) && asvp_workspace_cpu(nullptr) == 0, "no problem");
}

// ---------------------------------------------------------------- maps

asvp_problem small_problem(Reader& in) {
  asvp_problem p = {};
  p.dtype = static_cast<int>(in.below(4));
  p.c = 1 + in.below(16);
  p.l = 1 + in.below(48);
  p.n = 1 + in.below(2);
  switch (in.below(16)) {
    case 0: p.n = 60 + in.below(20), p.c = 1 + in.below(4), p.l = 1 + in.below(8); break;  // more samples than slots
    case 1: p.c = 1 + in.below(100), p.n = 1; break;
    case 2: p.l = 1 + in.below(6000), p.c = 1 + in.below(8), p.n = 1; break;               // several chunks
    case 3: p.c = 222 + in.below(12), p.l = 1 + in.below(40), p.n = 1, p.dtype = ASVP_FLOAT32; break;  // Lanczos
    default: break;
  }
  p.rank = in.one_in(8) ? INT64_MAX >> in.below(63) : 1 + in.below(6);
  p.gain = in.one_in(4) ? in.real() : in.pick({0.25, 1.5, 3.0, 10.0, 100.0, 1.0, 1.1, 0x1p-20});
  p.energy = in.one_in(4) ? in.real() : in.pick({1.0, 1.0, 0.5, 0.9, 0.999});
  return p;
}

// The three axes in any order of memory, with gaps; the stride of an axis of one element is anything.
void lay_out(Reader& in, asvp_problem* p) {
  int64_t* strides[] = {&p->position_stride, &p->channel_stride, &p->sample_stride};
  const int64_t counts[] = {p->l, p->c, p->n};
  constexpr int orders[][3] = {{0, 1, 2}, {1, 0, 2}, {0, 2, 1}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  const int* order = orders[in.one_in(3) ? in.below(6) : in.below(2)];
  const bool gaps = in.one_in(3);
  int64_t next = 1;
  for (int i = 0; i < 3; ++i) {
    const int axis = order[i];
    *strides[axis] = next += gaps ? in.below(3) : 0;
    next *= counts[axis];
    if (counts[axis] == 1 && in.one_in(4)) *strides[axis] = in.integer();
  }
}

std::string shown(const asvp_problem& p) {
  char text[300];
  const long long numbers[] = {p.n, p.c, p.l, p.sample_stride, p.channel_stride, p.position_stride, p.rank};
  snprintf(text, sizeof(text), "%lld x %lld x %lld, strides %lld %lld %lld, type %d, rank %lld, gain %.17g, energy %.17g",
           numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], p.dtype, numbers[6], p.gain, p.energy);
  return text;
}

int64_t place(const asvp_problem& p, int64_t s, int64_t i, int64_t j) {
  return (p.n > 1 ? s * p.sample_stride : 0) + (p.c > 1 ? i * p.channel_stride : 0) + (p.l > 1 ? j * p.position_stride : 0);
}

struct Noise {
  uint64_t state;
  long double next() {  // about normal
    long double sum = -6;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<long double>(state >> 11) * 0x1p-53L;
    }
    return sum;
  }
};

// One sample: noise, few components, patterns of bits, one value; scaled; some elements replaced.
void fill(Reader& in, const asvp_problem& p, int64_t s, void* x) {
  const Format format = format_of(p.dtype);
  const int64_t kind = in.below(6), parts = 1 + in.below(4);
  const int exponent = in.one_in(3) ? static_cast<int>(in.below(2 * format.largest)) - format.largest
                                    : static_cast<int>(in.below(60)) - 30;
  Noise noise = {in.bits(2)};
  const long double decay = in.pick({1.0L, 0.99L, 0.5L, 1e-2L, 1e-5L});
  std::vector<long double> left, right;
  for (int64_t t = 0; t < parts * p.c; ++t) left.push_back(noise.next());
  for (int64_t t = 0; t < parts * p.l; ++t) right.push_back(noise.next());
  for (int64_t i = 0; i < p.c; ++i)
    for (int64_t j = 0; j < p.l; ++j) {
      uint64_t bits;
      if (kind == 0) {
        bits = in.bits(format.bytes);
      } else {
        long double value = kind == 1 ? 0 : kind == 2 ? 1 : noise.next();
        if (kind == 3) value = fmaxl(value * 0.2L + left[i], 0);
        if (kind == 4) {
          value = 0;
          long double factor = 1;
          for (int64_t t = 0; t < parts; ++t, factor *= decay) value += factor * left[t * p.c + i] * right[t * p.l + j];
        }
        bits = encode(p.dtype, ldexpl(value, exponent));
      }
      put_element(p.dtype, x, place(p, s, i, j), bits);
    }
  for (int64_t replaced = in.one_in(3) ? in.below(4) : 0; replaced > 0; --replaced) {
    const long double values[] = {0, -0.0L, 1, INFINITY, NAN, largest_of(format), -largest_of(format), step_at(format, 0),
                                  ldexpl(1, format.smallest)};
    const uint64_t bits = in.one_in(4) ? in.bits(format.bytes) : encode(p.dtype, in.pick(values));
    put_element(p.dtype, x, place(p, s, in.below(p.c), in.below(p.l)), bits);
  }
}

Rows rows_of(const asvp_problem& p, int64_t s, const void* map) {
  Rows rows(static_cast<size_t>(p.c), std::vector<long double>(static_cast<size_t>(p.l)));
  for (int64_t i = 0; i < p.c; ++i)
    for (int64_t j = 0; j < p.l; ++j) rows[i][j] = element_at(p.dtype, map, place(p, s, i, j));
  return rows;
}

void judge(const asvp_problem& p, int64_t s, const void* x, const void* y) {
  const Rows m = rows_of(p, s, x), out = rows_of(p, s, y);
  long double norm = 0, largest = 0;
  bool finite = true, all_nan = true, all_finite = true, zero = true;
  for (size_t i = 0; i < m.size(); ++i)
    for (size_t j = 0; j < m[i].size(); ++j) {
      finite = finite && isfinite(m[i][j]);
      norm += m[i][j] * m[i][j];
      largest = fmaxl(largest, fabsl(m[i][j]));
      all_nan = all_nan && isnan(out[i][j]);
      all_finite = all_finite && isfinite(out[i][j]);
      zero = zero && out[i][j] == 0;
    }
  if (!finite) {
    REQUIRE(all_nan, "a sample with NaN or infinity did not come back as NaN: %s", shown(p).c_str());
    return;
  }
  if (largest == 0) REQUIRE(zero, "a map of zeros did not stay one: %s", shown(p).c_str());
  // No element of the result is larger than this.
  const long double bound = sqrtl(norm) * fmaxl(1, p.gain) * 1.001L;
  if (bound > largest_of(format_of(p.dtype))) return;
  REQUIRE(all_finite, "a result of at most %Lg is not finite: %s", bound, shown(p).c_str());
  const bool ordinary = p.dtype == ASVP_FLOAT64   ? largest > 1e-290L
                        : p.dtype == ASVP_FLOAT16 ? largest > 0
                                                  : largest >= 1e-20L && bound <= 1e36L;  // docs/concepts/operator.md
  if (largest == 0 || !ordinary || p.gain < 0x1p-10 || p.gain > 1e4 || fabs(p.gain - 1) < 0.5 || p.c > 110) return;
  if (p.c * p.c * (p.c + p.l) > 20000) return;  // long double takes too long
  const std::string problem = wrong({p.dtype, p.rank, p.gain, p.energy}, m, out);
  REQUIRE(problem.empty(), "%s, largest %Lg: %s", shown(p).c_str(), largest, problem.c_str());
}

void compute(Reader& in) {
  asvp_problem p = small_problem(in);
  lay_out(in, &p);
  const size_t bytes = bytes_of(p), step = kAnyAddress ? 1 : static_cast<size_t>(element_bytes(p.dtype));
  const size_t offset = in.one_in(3) ? static_cast<size_t>(in.below(64)) / step * step : 0;
  Buffer x(bytes, offset), y(bytes, offset), again(bytes, 0);
  for (int64_t s = 0; s < p.n; ++s) fill(in, p, s, x.data);
  Buffer kept(bytes, 0);
  memcpy(kept.data, x.data, bytes);
  Buffer workspace(workspace_of(p), 0, 256);
  const asvp_status status = perturb(p, x.data, y.data, workspace, 0);
  REQUIRE(status == (asvp_check(&p) ? ASVP_BAD_ARGUMENT : ASVP_OK), "status %d", status);
  REQUIRE(memcmp(kept.data, x.data, bytes) == 0, "the input was changed");
  if (status != ASVP_OK) return;
  for (int64_t s = 0; s < p.n; ++s) judge(p, s, x.data, y.data);

  const int order = 1 + static_cast<int>(in.below(6));
  memset(workspace.data, static_cast<int>(in.bits(1)), workspace.size);
  const bool in_place = in.below(2);
  if (in_place) memcpy(again.data, x.data, bytes);
  REQUIRE(perturb(p, in_place ? again.data : x.data, again.data, workspace, order) == ASVP_OK, "refused the second time");
  // What lies between the elements is 0xFF in all of them.
  REQUIRE(memcmp(again.data, y.data, bytes) == 0, "the order of the tasks, the place or the scratch memory shows: %s",
          shown(p).c_str());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  if (in.one_in(4))
    describe(in);
  else
    compute(in);
  return 0;
}
