// The elements of maps: between their types' bits and long double, which holds the squares of them all.
#ifndef ASVP_FUZZ_VALUES_H_
#define ASVP_FUZZ_VALUES_H_

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "asvp.h"

static_assert(LDBL_MAX_EXP > 4 * DBL_MAX_EXP, "the oracle counts on a long double of more range than a double");

struct Format {
  int bytes, mantissa, smallest, largest;  // bits behind the point; the least normal exponent; the largest one
};
inline Format format_of(int dtype) {
  switch (dtype) {
    case ASVP_FLOAT32: return {4, 23, -126, 127};
    case ASVP_FLOAT16: return {2, 10, -14, 15};
    case ASVP_BFLOAT16: return {2, 7, -126, 127};
    default: return {8, 52, -1022, 1023};
  }
}

// The distance between neighbours at `value`.
inline long double step_at(const Format& format, long double value) {
  int exponent = 0;
  frexpl(value, &exponent);
  if (value == 0 || exponent - 1 < format.smallest) exponent = format.smallest + 1;
  return ldexpl(1, exponent - 1 - format.mantissa);
}
inline long double largest_of(const Format& format) {
  return ldexpl(2 - ldexpl(1, -format.mantissa), format.largest);
}

inline uint64_t encode(int dtype, long double value) {
  const Format format = format_of(dtype);
  const int width = 8 * format.bytes;
  const uint64_t sign = signbit(value) ? uint64_t{1} << (width - 1) : 0;
  const uint64_t infinity = static_cast<uint64_t>(format.largest + format.largest + 1) << format.mantissa;
  if (isnan(value)) return infinity | uint64_t{1} << (format.mantissa - 1);
  const long double step = step_at(format, value), rounded = nearbyintl(fabsl(value) / step) * step;
  if (!(rounded <= largest_of(format))) return sign | infinity;
  int exponent = 0;
  frexpl(rounded, &exponent);
  const long double count = rounded / step_at(format, rounded);
  if (rounded == 0 || exponent - 1 < format.smallest) return sign | static_cast<uint64_t>(count);
  const uint64_t biased = static_cast<uint64_t>(exponent - 1 - format.smallest + 1);
  return sign | (biased << format.mantissa | (static_cast<uint64_t>(count) & ((uint64_t{1} << format.mantissa) - 1)));
}

inline long double decode(int dtype, uint64_t bits) {
  const Format format = format_of(dtype);
  const uint64_t top = uint64_t{1} << (8 * format.bytes - 1), mantissa = bits & ((uint64_t{1} << format.mantissa) - 1);
  const int biased = static_cast<int>((bits & (top - 1)) >> format.mantissa);
  long double value;
  if (biased == format.largest + format.largest + 1)
    value = mantissa ? static_cast<long double>(NAN) : static_cast<long double>(INFINITY);
  else if (biased == 0)
    value = ldexpl(mantissa, format.smallest - format.mantissa);
  else
    value = ldexpl(mantissa + (uint64_t{1} << format.mantissa), biased - 1 + format.smallest - format.mantissa);
  return bits & top ? -value : value;
}

inline void put_element(int dtype, void* base, int64_t index, uint64_t bits) {
  const int bytes = format_of(dtype).bytes;
  memcpy(static_cast<char*>(base) + index * bytes, &bits, bytes);  // little-endian, as the CPUs that have libFuzzer
}
inline long double element_at(int dtype, const void* base, int64_t index) {
  uint64_t bits = 0;
  const int bytes = format_of(dtype).bytes;
  memcpy(&bits, static_cast<const char*>(base) + index * bytes, bytes);
  return decode(dtype, bits);
}

#endif  // ASVP_FUZZ_VALUES_H_
