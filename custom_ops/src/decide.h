// The decisions that a solve takes from its numbers, the same in the CPU's and in CUDA's half.
#ifndef ASVP_DECIDE_H_
#define ASVP_DECIDE_H_

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define ASVP_HD __host__ __device__ __forceinline__
#else
#define ASVP_HD inline
#endif

namespace asvp {

// The power of two that brings `largest` to between 1 and 2, within +- limit: what the type of the arithmetic holds.
ASVP_HD double to_order_one(double largest, int limit) {
  if (!(largest > 0) || isinf(largest)) return 1;
  int exponent;
  frexp(largest, &exponent);
  const int power = 1 - exponent;
  return ldexp(1.0, power > limit ? limit : power < -limit ? -limit : power);
}

// r: the smallest count that covers the share `energy`.
template <class Count>
ASVP_HD Count count_kept(const double* values, Count rank, double energy, double trace) {
  if (energy >= 1) return rank;
  Count r = 0;
  double covered = 0;
  do covered += values[r++];
  while (r < rank && covered < energy * trace);
  return r;
}

// Whether an error of the float32 Gram matrix could move the result by more than about a third of the 1e-5 that is allowed
// where the gap is over 1e-2. To first order an error E of the Gram matrix turns u_r towards u_j, j > r, by
// E / (lambda_r - lambda_j), which moves U U^T M by s_r times that. E: what rounding leaves after averaging over the sums of
// `blocks` blocks of positions, with a floor for maps that repeat themselves, where it does not average out. A gain below 1 is
// that of an inverse: what it leaves is smaller than what it reads, and the pair is held to 8 units of rounding of the latter,
// 5e-7.
ASVP_HD bool too_blurred(const double* values, int64_t r, double trace, int64_t blocks, double gain) {
  const double last = fmax(values[r - 1], 0.0), following = fmax(values[r], 0.0);
  const double error = fmax(1e-8, 1e-7 / sqrt(static_cast<double>(blocks))) * values[0];
  if (values[0] <= 0) return false;
  if (last <= 64 * error) return true;         // s_r itself is in the blur
  if (following > 0.985 * last) return false;  // s: a gap under 0.8e-2; every choice of u_r is right
  return 1.5 * error * sqrt(last / trace) > (gain < 1 ? 2e-7 : 3e-6) * (last - following);
}

// What U is multiplied by before and after it meets the map: shift and (gain - 1) / shift, in T, the type of the arithmetic.
struct Factors {
  double before, after;
};

// The shift, a power of two, keeps U^T M inside T where the map comes near the ends of T's range, and (gain - 1) U where the
// gain does. By a gain from 2^277 on any float32 map that is not all zeros reaches infinity; it stops at 2^250, which T can still split.
template <class T>
ASVP_HD Factors factors_of(double largest, double gain) {
  const bool narrow = sizeof(T) == 4;
  const double change = narrow && gain > 0x1p250 ? 0x1p250 : gain - 1;
  const int limit = narrow ? 100 : 960, longest = narrow ? 125 : 960;
  int of_map, of_change;
  frexp(largest, &of_map);
  frexp(change, &of_change);
  const double shift = of_change > longest ? ldexp(1.0, of_change - longest)
                       : of_map > limit    ? 0x1p-16
                       : of_map < -limit   ? 0x1p20
                                           : 1;
  return {shift, change / shift};
}

}  // namespace asvp

#endif  // ASVP_DECIDE_H_
