/* SPDX-License-Identifier: Apache-2.0
 * fused.cu - c (rows, n) = (a (rows, k) first (k, rank) + inner_bias) second (rank, n) + bias in one kernel, on tensor cores, for 16-bit
 * types and ranks up to 256. The intermediate is made in registers, rounded into shared memory and used from there; c gets its bias
 * before it is rounded. What a pair of library products moves on top is the intermediate, written and read once, and the bias.
 *
 * A block of 8 warps takes 64 rows of a; the warps form 2 x 4.
 *   1. intermediate (64, RANK): slices of 32 along k of a and of first stream through shared memory in a ring of cp.async stages. A warp
 *      keeps 32 x RANK / 4 sums in registers, in fp32.
 *   2. The intermediate goes to shared memory as 16-bit numbers, where it is the left operand.
 *   3. Tiles of `second`, RANK x WIDTH, stream through the same memory in two stages; a warp makes 32 x WIDTH / 4 of c from each.
 * RANK is the rank rounded up to 64, 128 or 256; the excess is zeros, which cp.async writes for bytes beyond the operand. With few tiles
 * of rows, several blocks share the columns of c and each makes the intermediate anew.
 *
 * Operands lie on 16 bytes with strides in multiples of 8 elements, and k, rank and n are multiples of 8: then a vector of 8 elements is
 * inside or outside as a whole. Rows of shared memory are 8 elements longer than their tile: ldmatrix then meets no bank twice.
 * Shared memory, in KiB: 46 for rank 64, 87 for 128, 99 for 256, which is all that a block gets on sm_86, sm_89 and sm_120.
 *
 * The gradient dx = (dy u) v is the same with operands stored the other way round, see struct lath_fused. */
#include "core/numbers.h"
#include "device/ptx.h"
#include "lowrank/routes.h"

enum { THREADS = 256, ROWS = LATH_FUSED_ROWS, SLICE = 32, PAD = 8, VECTOR = 8, WARP_ROWS = 32, WARP_COLUMNS = 4 };

/* ---- sizes, in elements ------------------------------------------------------------------------------------------------------------ */

template <int RANK>
struct sizes {
  static constexpr int width = RANK == 256 ? 64 : 128;                         /* columns of c in a tile */
  static constexpr int stage = (ROWS + RANK) * (SLICE + PAD);                  /* of step 1; the transposed form is smaller */
  static constexpr int tile = (width + PAD) * RANK > width * (RANK + PAD) ? (width + PAD) * RANK : width * (RANK + PAD);
  static constexpr int ring = 2 * tile;                                        /* shared by both steps */
  static constexpr int stages = ring / stage < 4 ? ring / stage : 4;
  static constexpr int total = ring + ROWS * (RANK + PAD);
};

/* ---- tiles on their way to shared memory -------------------------------------------------------------------------------------------- */

/* A matrix of which rows and cols elements exist. */
template <class T>
struct source {
  const T *data;
  int64_t stride, rows, cols;
};

/* to (R, C + PAD) = the R x C elements from (row, col) on, zeros outside. */
template <int R, int C, class T>
static __device__ inline void copy_tile(T *to, const struct source<T> &from, int64_t row, int64_t col) {
  static_assert(R * C % (VECTOR * THREADS) == 0, "each thread copies the same number of vectors");
#pragma unroll
  for (int step = 0; step < R * C / (VECTOR * THREADS); step++) {
    const int i = step * THREADS + (int)threadIdx.x, r = i / (C / VECTOR), c = i % (C / VECTOR) * VECTOR;
    const bool inside = row + r < from.rows && col + c < from.cols;
    lath_cp_async_16(to + r * (C + PAD) + c, inside ? from.data + (row + r) * from.stride + col + c : from.data, inside ? 16 : 0);
  }
}

/* The slice of step 1 from k on: a as (ROWS, SLICE), then first as (RANK, SLICE), or (SLICE, RANK) when transposed. */
template <int RANK, bool TRANSPOSED, class T>
static __device__ inline void copy_slice(T *stage, const struct source<T> &a, const struct source<T> &first, int64_t row, int64_t k) {
  copy_tile<ROWS, SLICE>(stage, a, row, k);
  T *to = stage + ROWS * (SLICE + PAD);
  if constexpr (TRANSPOSED)
    copy_tile<SLICE, RANK>(to, first, k, 0);
  else
    copy_tile<RANK, SLICE>(to, first, 0, k);
}

template <int RANK, bool TRANSPOSED, class T>
static __device__ inline void copy_second(T *to, const struct source<T> &second, int64_t column) {
  constexpr int WIDTH = sizes<RANK>::width;
  if constexpr (TRANSPOSED)
    copy_tile<RANK, WIDTH>(to, second, 0, column);
  else
    copy_tile<WIDTH, RANK>(to, second, column, 0);
}

/* ---- tensor cores ------------------------------------------------------------------------------------------------------------------- */

static __device__ inline void multiply(float *d, const unsigned *a, const unsigned *b, __half) { lath_mma_m16n8k16_f16(d, a, b); }
static __device__ inline void multiply(float *d, const unsigned *a, const unsigned *b, __nv_bfloat16) {
  lath_mma_m16n8k16_bf16(d, a, b);
}

/* sum (32, 8 N) += a (32, DEPTH) b (DEPTH, 8 N) for this warp. a has rows of A_STRIDE elements. b is stored as (8 N, DEPTH), or as
 * (DEPTH, 8 N) when TRANSPOSED, with rows of B_STRIDE elements. N is even. */
template <int N, int DEPTH, int A_STRIDE, int B_STRIDE, bool TRANSPOSED, class T>
static __device__ inline void multiply_tiles(float (*sum)[N][4], const T *a, const T *b) {
  const int lane = (int)threadIdx.x % 32;
  /* Lane 8 i + j points at row j of matrix i. Of a: rows 0-7 and 8-15, then the same 8 columns on. Of b: columns k 0-7 and 8-15 of the
   * first 8 rows, then of the next 8; transposed, rows k 0-7 and 8-15 of the first 8 columns, then of the next 8. */
  const T *a_row = a + lane % 16 * A_STRIDE + lane / 16 * 8;
  const T *b_row = TRANSPOSED ? b + lane % 16 * B_STRIDE + lane / 16 * 8 : b + (lane / 16 * 8 + lane % 8) * B_STRIDE + lane / 8 % 2 * 8;
#pragma unroll 2
  for (int d = 0; d < DEPTH; d += 16) {
    unsigned x[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) lath_ldmatrix_x4(x[i], a_row + i * 16 * A_STRIDE + d);
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      unsigned y[4];
      if constexpr (TRANSPOSED)
        lath_ldmatrix_x4_trans(y, b_row + d * B_STRIDE + j * 8);
      else
        lath_ldmatrix_x4(y, b_row + j * 8 * B_STRIDE + d);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        multiply(sum[i][j], x[i], y, T());
        multiply(sum[i][j + 1], x[i], y + 2, T());
      }
    }
  }
}

/* ---- from registers to memory ------------------------------------------------------------------------------------------------------- */

/* Two neighbours as one register, the first in the low half. */
template <class T>
static __device__ inline unsigned pack(float low, float high) {
  T pair[2];
  unsigned bits;
  lath_round(low, &pair[0]);
  lath_round(high, &pair[1]);
  memcpy(&bits, static_cast<const void *>(pair), sizeof bits);
  return bits;
}

template <class T>
static __device__ inline float number_at(const T *vector, int64_t i, int64_t count) {
  return vector && i < count ? lath_number(vector[i]) : 0.f;
}

/* intermediate (32, 8 N of this warp) = sum + inner_bias, rounded, in rows of STRIDE elements. Zeros beyond the rank: infinity times the
 * zeros that pad `first` has made NaN there. */
template <int N, int STRIDE, class T>
static __device__ inline void keep_intermediate(T *to, float (*sum)[N][4], const T *inner_bias, int column, int64_t rank) {
  const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < N; j++) {
    const int q = column + j * 8 + 2 * t;
    const float low = number_at(inner_bias, q, rank), high = number_at(inner_bias, q + 1, rank);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned bits = q < rank ? pack<T>(sum[i][j][2 * half] + low, sum[i][j][2 * half + 1] + high) : 0;
        *reinterpret_cast<lath_4_bytes *>(to + (i * 16 + half * 8 + g) * STRIDE + q) = bits;
      }
  }
}

/* The block's rows of p, 16 bytes at a time. */
template <int RANK, class T>
static __device__ inline void store_intermediate(T *p, const T *from, int64_t row, int64_t rows, int64_t rank) {
  for (int i = (int)threadIdx.x; i < ROWS * RANK / VECTOR; i += THREADS) {
    const int r = i / (RANK / VECTOR), j = i % (RANK / VECTOR) * VECTOR;
    if (row + r >= rows || j >= rank) continue;
    *reinterpret_cast<lath_16_bytes *>(p + (row + r) * rank + j) = *reinterpret_cast<const lath_16_bytes *>(from + r * (RANK + PAD) + j);
  }
}


/* c (32, 8 N of this warp) = sum + bias. A thread holds 2 neighbours of each 8 columns; of two such groups, it gives its 2 of one to the
 * thread beside it and takes that one's 2 of the other, so that it stores 4 neighbours and four threads fill a sector of 32 bytes. */
template <int N, class T>
static __device__ inline void store_tile(const struct source<T> &c, float (*sum)[N][4], const T *bias, int64_t row, int64_t column) {
  const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4, odd = lane % 2;
  T *data = const_cast<T *>(c.data);
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    const int64_t q = column + j * 8 + 2 * t;
    const float b0 = number_at(bias, q, c.cols), b1 = number_at(bias, q + 1, c.cols), b2 = number_at(bias, q + 8, c.cols),
                b3 = number_at(bias, q + 9, c.cols);
    const int64_t first = column + (j + odd) * 8 + (t - odd) * 2;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned left = pack<T>(sum[i][j][2 * half] + b0, sum[i][j][2 * half + 1] + b1);
        const unsigned right = pack<T>(sum[i][j + 1][2 * half] + b2, sum[i][j + 1][2 * half + 1] + b3);
        const unsigned taken = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
        const int64_t r = row + i * 16 + half * 8 + g;
        const lath_8_bytes bits = {odd ? taken : left, odd ? right : taken};
        if (r < c.rows && first < c.cols) *reinterpret_cast<lath_8_bytes *>(data + r * c.stride + first) = bits;
      }
  }
}

/* ---- the kernel ----------------------------------------------------------------------------------------------------------------------- */

template <class T>
struct fused_args {
  struct source<T> a, first, second, c; /* as stored */
  int64_t k, rank;
  const T *inner_bias, *bias;
  T *p;
};

/* Step 1: this warp's part of the intermediate, (32, RANK / 4), in registers. */
template <int RANK, bool TRANSPOSED, class T>
static __device__ inline void make_intermediate(float (*sum)[RANK / 32][4], T *ring, const struct fused_args<T> &g, int64_t row,
                                                int warp_row, int warp_column) {
  constexpr int STAGES = sizes<RANK>::stages, STAGE = sizes<RANK>::stage, OFFSET = ROWS * (SLICE + PAD);
  const int64_t steps = (g.k + SLICE - 1) / SLICE;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) copy_slice<RANK, TRANSPOSED>(ring + s * STAGE, g.a, g.first, row, (int64_t)s * SLICE);
    lath_cp_async_commit();
  }
  int at = 0, next = STAGES - 1;
#pragma unroll 1
  for (int64_t step = 0; step < steps; step++) {
    lath_cp_async_wait<STAGES - 2>();
    __syncthreads(); /* this stage has arrived for all threads, and all are done with the one before it, which is filled next */
    if (step + STAGES - 1 < steps) copy_slice<RANK, TRANSPOSED>(ring + next * STAGE, g.a, g.first, row, (step + STAGES - 1) * SLICE);
    lath_cp_async_commit();
    const T *a = ring + at * STAGE + warp_row * (SLICE + PAD), *b = ring + at * STAGE + OFFSET;
    if constexpr (TRANSPOSED)
      multiply_tiles<RANK / 32, SLICE, SLICE + PAD, RANK + PAD, true>(sum, a, b + warp_column * (RANK / 4));
    else
      multiply_tiles<RANK / 32, SLICE, SLICE + PAD, SLICE + PAD, false>(sum, a, b + warp_column * (RANK / 4) * (SLICE + PAD));
    at = at + 1 < STAGES ? at + 1 : 0;
    next = next + 1 < STAGES ? next + 1 : 0;
  }
  lath_cp_async_wait<0>();
  __syncthreads(); /* the ring is free */
}

/* Step 3: tiles of c from `tile` to `end`. */
template <int RANK, bool TRANSPOSED, class T>
static __device__ inline void make_c(T *ring, const T *intermediate, const struct fused_args<T> &g, int64_t row, int64_t tile, int64_t end,
                                     int warp_row, int warp_column) {
  constexpr int WIDTH = sizes<RANK>::width, TILE = sizes<RANK>::tile, N = WIDTH / 32;
  if (tile < end) copy_second<RANK, TRANSPOSED>(ring, g.second, tile * WIDTH);
  lath_cp_async_commit();
#pragma unroll 1
  for (int at = 0; tile < end; tile++, at ^= 1) {
    lath_cp_async_wait<0>();
    __syncthreads(); /* as above; the first time also for the intermediate */
    if (tile + 1 < end) copy_second<RANK, TRANSPOSED>(ring + (at ^ 1) * TILE, g.second, (tile + 1) * WIDTH);
    lath_cp_async_commit();
    float sum[2][N][4] = {};
    const T *a = intermediate + warp_row * (RANK + PAD), *b = ring + at * TILE;
    if constexpr (TRANSPOSED)
      multiply_tiles<N, RANK, RANK + PAD, WIDTH + PAD, true>(sum, a, b + warp_column * (WIDTH / 4));
    else
      multiply_tiles<N, RANK, RANK + PAD, RANK + PAD, false>(sum, a, b + warp_column * (WIDTH / 4) * (RANK + PAD));
    store_tile<N>(g.c, sum, g.bias, row + warp_row, tile * WIDTH + warp_column * (WIDTH / 4));
  }
  lath_cp_async_wait<0>();
}

/* launch: fused threads=256 shared=46080,87040,101376 for rank 64,128,256 */
template <int RANK, bool TRANSPOSED, class T>
static __global__ void __launch_bounds__(THREADS, RANK == 256 ? 1 : 2) fused(struct fused_args<T> g) {
  LATH_DYNAMIC_SHARED(T, ring);
  T *intermediate = ring + sizes<RANK>::ring;
  const int warp = (int)threadIdx.x / 32, warp_row = warp / WARP_COLUMNS * WARP_ROWS, warp_column = warp % WARP_COLUMNS;
  const int64_t row = (int64_t)blockIdx.x * ROWS, tiles = (g.c.cols + sizes<RANK>::width - 1) / sizes<RANK>::width;
  float sum[2][RANK / 32][4] = {};
  make_intermediate<RANK, TRANSPOSED>(sum, ring, g, row, warp_row, warp_column);
  keep_intermediate<RANK / 32, RANK + PAD>(intermediate + warp_row * (RANK + PAD), sum, g.inner_bias, warp_column * (RANK / 4), g.rank);
  if (g.p && blockIdx.y == 0) {
    __syncthreads();
    store_intermediate<RANK>(g.p, intermediate, row, g.c.rows, g.rank);
  }
  make_c<RANK, TRANSPOSED>(ring, intermediate, g, row, tiles * blockIdx.y / gridDim.y, tiles * (blockIdx.y + 1) / gridDim.y, warp_row,
                           warp_column);
}

/* ---- host ------------------------------------------------------------------------------------------------------------------------------- */

static int padded(int64_t rank) { return rank <= 64 ? 64 : rank <= 128 ? 128 : 256; }

extern "C" int lath_fused_shared_bytes(int64_t rank) {
  const int elements = padded(rank) == 64 ? sizes<64>::total : padded(rank) == 128 ? sizes<128>::total : sizes<256>::total;
  return elements * 2;
}

extern "C" int lath_fused_shares(const struct lath_fused *f, int multiprocessors) {
  const int64_t tiles = lath_blocks(f->n, padded(f->rank) == 256 ? 64 : 128), blocks = lath_blocks(f->rows, ROWS);
  int64_t shares = multiprocessors / blocks;
  /* Each further block repeats the first product, which should not cost more than what it takes over of the second. */
  const int64_t most = f->k > 0 ? 1 + f->n / f->k : 1;
  if (shares > most) shares = most;
  if (shares > tiles) shares = tiles;
  return shares > 1 ? (int)shares : 1;
}

template <class T>
static struct source<T> as_source(const void *data, int64_t stride, int64_t rows, int64_t cols) {
  const struct source<T> s = {static_cast<const T *>(data), stride, rows, cols};
  return s;
}

template <int RANK, bool TRANSPOSED, class T>
static cudaError_t launch(const struct lath_fused *f, const struct lath_device *device, int ordinal, void *stream) {
  static bool allowed[LATH_MAX_DEVICES]; /* a race of two threads sets the same limit twice */
  const int bytes = lath_fused_shared_bytes(f->rank);
  if (!__atomic_load_n(&allowed[ordinal], __ATOMIC_RELAXED)) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void *>(&fused<RANK, TRANSPOSED, T>),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    __atomic_store_n(&allowed[ordinal], true, __ATOMIC_RELAXED);
  }
  struct fused_args<T> g;
  g.a = as_source<T>(f->a, f->s_a, f->rows, f->k);
  g.first = TRANSPOSED ? as_source<T>(f->first, f->s_first, f->k, f->rank) : as_source<T>(f->first, f->s_first, f->rank, f->k);
  g.second = TRANSPOSED ? as_source<T>(f->second, f->s_second, f->rank, f->n) : as_source<T>(f->second, f->s_second, f->n, f->rank);
  g.c = as_source<T>(f->c, f->s_c, f->rows, f->n);
  g.k = f->k, g.rank = f->rank;
  g.inner_bias = static_cast<const T *>(f->inner_bias), g.bias = static_cast<const T *>(f->bias), g.p = static_cast<T *>(f->p);
  const dim3 grid((unsigned)lath_blocks(f->rows, ROWS), (unsigned)lath_fused_shares(f, device->multiprocessors));
  LATH_LAUNCH((fused<RANK, TRANSPOSED, T>), grid, dim3(THREADS), bytes, stream, g);
  return cudaGetLastError();
}

template <bool TRANSPOSED, class T>
static cudaError_t launch_rank(const struct lath_fused *f, const struct lath_device *device, int ordinal, void *stream) {
  if (padded(f->rank) == 64) return launch<64, TRANSPOSED, T>(f, device, ordinal, stream);
  if (padded(f->rank) == 128) return launch<128, TRANSPOSED, T>(f, device, ordinal, stream);
  return launch<256, TRANSPOSED, T>(f, device, ordinal, stream);
}

template <class T>
static cudaError_t launch_type(const struct lath_fused *f, const struct lath_device *device, int ordinal, void *stream) {
  return f->transposed ? launch_rank<true, T>(f, device, ordinal, stream) : launch_rank<false, T>(f, device, ordinal, stream);
}

extern "C" int lath_cuda_fused(const struct lath_fused *f, const struct lath_device *device, int ordinal, void *stream) {
  if (lath_blocks(f->rows, ROWS) > INT32_MAX) return cudaErrorInvalidValue;
  if (f->dtype == LATH_F16) return launch_type<__half>(f, device, ordinal, stream);
  return launch_type<__nv_bfloat16>(f, device, ordinal, stream);
}
