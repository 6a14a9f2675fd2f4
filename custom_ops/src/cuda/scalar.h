// Elements of maps, exact sums, powers of two: the same results on the GPU and on a CPU.
#ifndef ASVP_CUDA_SCALAR_H_
#define ASVP_CUDA_SCALAR_H_

#include <math.h>
#include <string.h>

#include "../decide.h"
#include "block.h"

namespace asvp {
namespace cuda {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

template <class To, class From>
ASVP_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// ---------------------------------------------------------------- to the arithmetic's type and back, rounded once

ASVP_HD float widen(float x) { return x; }
ASVP_HD double widen(double x) { return x; }
ASVP_HD float widen(Brain x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
ASVP_HD float widen(Half x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const uint32_t exponent = (x.bits >> 10) & 31, sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t normal = (static_cast<uint32_t>(x.bits & 0x7fff) << 13) + (exponent == 31 ? 224u << 23 : 112u << 23);
  const uint32_t small = bit_cast<uint32_t>(static_cast<float>(x.bits & 0x3ff) * 0x1p-24f);
  return bit_cast<float>((exponent ? normal : small) | sign);
#endif
}

// What the map is multiplied in.
template <class E>
struct Arithmetic {
  typedef double Type;
};
template <>
struct Arithmetic<float> {
  typedef float Type;
};
// What its elements are kept in meanwhile.
template <class E>
struct Exact {
  typedef float Type;
};
template <>
struct Exact<double> {
  typedef double Type;
};

template <class E>
struct Solved {
  typedef E Type;
};
template <>
struct Solved<Brain> {
  typedef Half Type;
};

// To float32, rounded to odd: a further rounding to half is then the one rounding of the float64 value (Boldo, Melquiond,
// IEEE Trans. Comput. 57, 2008).
ASVP_HD uint32_t odd_bits(double value) {
  const float near = static_cast<float>(value);
  const uint32_t bits = bit_cast<uint32_t>(near);
  const double back = near;
  const bool inexact = back != value, over = fabs(back) > fabs(value);
  return (bits - (inexact && over ? 1u : 0u)) | (inexact ? 1u : 0u);
}

ASVP_HD void narrow(float value, float& to) { to = value; }
ASVP_HD void narrow(double value, double& to) { to = value; }
ASVP_HD void narrow(double value, Brain& to) {
  const uint32_t bits = odd_bits(value), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
ASVP_HD void narrow(double value, Half& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f64 %0, %1;" : "=h"(to.bits) : "d"(value));
#else
  const uint32_t bits = odd_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const float steps = bit_cast<float>(magnitude < 113u << 23 ? magnitude : 0) * 0x1p24f + 0x1p23f;
  const uint32_t small = bit_cast<uint32_t>(steps) - 0x4b000000;
  const uint32_t rounded = magnitude < 113u << 23 ? small : normal;
  const uint32_t limited = magnitude > 0x7f800000 ? 0x7e00 : rounded > 0x7c00 || magnitude >= 0x47800000 ? 0x7c00 : rounded;
  to.bits = static_cast<uint16_t>(limited | sign);
#endif
}

// Magnitudes as integers: NaN and infinity sort above every number, and no comparison is unordered.
template <class E>
struct Magnitude {
  typedef uint32_t Bits;
  static constexpr Bits kInfinity = 0x7f800000;
  static ASVP_HD Bits of(E x) { return bit_cast<uint32_t>(widen(x)) & 0x7fffffff; }
  static ASVP_HD double value(Bits bits) { return bit_cast<float>(bits); }
};
template <>
struct Magnitude<double> {
  typedef uint64_t Bits;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
  static ASVP_HD Bits of(double x) { return bit_cast<uint64_t>(x) & 0x7fffffffffffffff; }
  static ASVP_HD double value(Bits bits) { return bit_cast<double>(bits); }
};

// ---------------------------------------------------------------- arithmetic

// One rounding, on both machines: contraction is not left to compilers.
ASVP_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
ASVP_HD double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Never contracted.
#if defined(__CUDA_ARCH__)
ASVP_HD float add(float a, float b) { return __fadd_rn(a, b); }
ASVP_HD double add(double a, double b) { return __dadd_rn(a, b); }
ASVP_HD double multiply(double a, double b) { return __dmul_rn(a, b); }
#else
ASVP_HD float add(float a, float b) { return a + b; }
ASVP_HD double add(double a, double b) { return a + b; }
ASVP_HD double multiply(double a, double b) { return a * b; }
#endif

// high + low, about 106 bits (Dekker, Numer. Math. 18, 1971; Knuth's sum, which wants no order of size).
struct Twofold {
  double high, low;
};
ASVP_HD Twofold two_sum(double a, double b) {
  const double s = add(a, b), t = add(s, -a);
  return {s, add(add(a, -add(s, -t)), add(b, -t))};
}
ASVP_HD Twofold plus(Twofold a, Twofold b) {
  const Twofold s = two_sum(a.high, b.high);
  const double low = add(s.low, add(a.low, b.low)), high = add(s.high, low);
  return {high, add(low, -add(high, -s.high))};
}
ASVP_HD Twofold plus_product(Twofold sum, double a, double b) {
  const double p = multiply(a, b), error = fma(a, b, -p);
  const Twofold s = two_sum(sum.high, p);
  const double low = add(s.low, add(sum.low, error)), high = add(s.high, low);
  return {high, add(low, -add(high, -s.high))};
}
// sum + (high + low) * b
ASVP_HD Twofold plus_product(Twofold sum, Twofold a, double b) {
  Twofold s = plus_product(sum, a.high, b);
  s.low = fma(a.low, b, s.low);
  return s;
}

template <class T>
ASVP_HD constexpr T round_up(T value, T step) { return (value + step - 1) / step * step; }
template <class T>
ASVP_HD constexpr T ceil_div(T value, T step) { return (value + step - 1) / step; }
template <class T>
ASVP_HD constexpr T least(T a, T b) { return a < b ? a : b; }
template <class T>
ASVP_HD constexpr T most(T a, T b) { return a > b ? a : b; }

}  // namespace cuda
}  // namespace asvp

#endif  // ASVP_CUDA_SCALAR_H_
