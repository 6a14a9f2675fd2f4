// The inner loops, once for each instruction set: what operator.cpp calls, and what the kernels_*.cpp files fill in.
#ifndef ASVP_KERNELS_H_
#define ASVP_KERNELS_H_

#include "asvp.h"

namespace asvp {

// Where the elements of one sample lie.
struct Layout {
  asvp_dtype dtype;
  int64_t channels, channel_stride, position_stride;
};

// Loops over one block: some positions of a sample, packed channel by channel ("tile", 64-byte aligned, `width` elements from
// row to row). T is the type of the arithmetic, not of the map.
//
// Why every block is packed, even contiguous float32: one pass over memory in long runs does the conversion of half
// types, the transposition of tokens, the alignment, the zero padding and the search for NaN; and rows whose distance is a
// power of two (256 x 256 maps) would otherwise fall into the same few cache sets and push each other out between uses.
template <class T>
struct BlockKernels {
  // Fills the tile with positions first .. first + count: zeros up to whole vectors and up to whole groups of four rows.
  // Returns the largest magnitude, infinity if one is NaN or infinite. staging: 16 * (channels + 16) elements.
  double (*pack)(const Layout&, const void* sample, int64_t first, int64_t count, T* tile, int64_t width, T* staging);
  void (*scale)(T* tile, int64_t width, int64_t rows, int64_t count, T factor);
  // sums += factor * tile tile^T, the tiles of 4 x 4 on and above the diagonal (see `sum_tile`); rows in fours.
  void (*gram)(const T* tile, int64_t width, int64_t rows, int64_t count, double factor, double* sums);
  // out[t][j] = sum over c of u[c][t] tile[c][j], for t < r.
  void (*project)(const T* tile, int64_t width, int64_t rows, int64_t count, const T* u, int64_t u_stride, int64_t r,
                  T* out);
  // out = tile + after (before^T tile); out may be the tile. weights: r * width elements. Writes `count` positions a row,
  // where `past` and the alignment of out allow it past the caches.
  void (*apply)(T* tile, int64_t width, int64_t rows, int64_t count, const T* before, const T* after, int64_t u_stride,
                int64_t r, T* weights, T* out, int64_t out_stride, bool past);
  // The way back from a tile to the map, rounded once.
  void (*unpack)(const Layout&, const T* tile, int64_t width, int64_t first, int64_t count, void* sample, T* staging);
};

// One symmetric eigenproblem in float64. Row stride `ld` of a and z: at least n, a multiple of 8, like the number of rows.
struct Symmetric {
  int64_t n, ld;
  double* a;         // the matrix, lower triangle and diagonal blocks of 8; destroyed
  double* z;         // as a: scratch
  double* y;         // as a: the eigenvectors, component i of vector t at i * y_stride + t
  double* work;      // 10 * ld
  double* values;    // n + 1: descending; all that `leading` leaves out are zero
  int64_t y_stride;  // set by `leading`
};

struct Kernels {
  const char* name;
  BlockKernels<float> narrow;
  BlockKernels<double> wide;
  // The k leading eigenvectors, and values[0 .. k] (the one behind the last, to 9 digits, tells the gap).
  void (*leading)(Symmetric&, int64_t k);
  // The same as far as a float32 map needs it, for many rows and few vectors; values[k] is an upper bound. False: could not.
  bool (*leading_quick)(Symmetric&, int64_t k);
};

extern const Kernels kPortable;
#if defined(ASVP_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// Place of the 4 x 4 tile (i, j), i <= j < count, of the upper triangle; element (a, b) of it at 4 * b + a.
constexpr int64_t sum_tile(int64_t i, int64_t j, int64_t count) { return 16 * (i * count - i * (i - 1) / 2 + j - i); }

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace asvp

#endif  // ASVP_KERNELS_H_
