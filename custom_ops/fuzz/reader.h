// The bytes of a fuzzer's input as choices. Every input means something: at its end there are zeros.
#ifndef ASVP_FUZZ_READER_H_
#define ASVP_FUZZ_READER_H_

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The fuzzer takes an abort for a finding and keeps the input.
#define REQUIRE(condition, ...)                                  \
  do {                                                           \
    if (!(condition)) {                                          \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                              \
      fputc('\n', stderr);                                       \
      abort();                                                   \
    }                                                            \
  } while (false)

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint64_t bits(int bytes) {
    uint64_t value = 0;
    for (; bytes > 0; --bytes) value = value << 8 | (at_ < end_ ? *at_++ : 0);
    return value;
  }
  // In [0, count).
  int64_t below(int64_t count) { return static_cast<int64_t>(bits(count > 256 ? 4 : 1)) % count; }
  bool one_in(int64_t count) { return below(count) == count - 1; }
  template <class T, size_t count>
  T pick(const T (&values)[count]) {
    return values[below(count)];
  }

  // Any integer, the ends of ranges more often.
  int64_t integer() {
    constexpr int64_t ends[] = {INT64_MIN, INT64_MAX,        -1,
                                0,         1,                INT32_MAX,
                                INT32_MIN, int64_t{1} << 20, (int64_t{1} << 20) + 1,
                                1 << 16,   int64_t{1} << 40, INT64_MAX >> 8};
    switch (below(4)) {
      case 0: return pick(ends);
      case 1: return static_cast<int64_t>(bits(8));
      default: return static_cast<int64_t>(bits(1)) - 2;
    }
  }
  // Any float64: sensible ones, and every pattern of bits.
  double real() {
    constexpr double ends[] = {0.0,     -0.0,  1.0,    -1.0,    1.1,    0.5,     0.9,     2.0,    3.0,       100.0,
                               0x1p-30, 1e-45, 1e-300, 5e-324,  1e-38,  3.4e38,  3.5e38,  1e300,  1.7e308,   0.999999999,
                               1e18,    1e-20, 1e36,   __builtin_inf(), -__builtin_inf(), __builtin_nan("")};
    if (!one_in(3)) return pick(ends);
    const uint64_t pattern = bits(8);
    double value;
    memcpy(&value, &pattern, 8);
    return value;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

#endif  // ASVP_FUZZ_READER_H_
