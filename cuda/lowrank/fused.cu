/* SPDX-License-Identifier: Apache-2.0
 * fused.cu - c (rows, n) = (a (rows, k) first (k, rank) + inner_bias) second (rank, n) + bias in one kernel, on tensor cores,
 * for 16-bit types and ranks up to 256. The intermediate is made in registers, rounded into shared memory and used from there;
 * c gets its bias before it is rounded. What a pair of library products moves on top is the intermediate, written and read
 * once, and the bias.
 *
 * A block of 8 warps takes ROWS rows of a, 64 or 128; the warps form 2 x 4 or 4 x 2.
 *   1. intermediate (ROWS, RANK): slices of 32 along k of a and of first stream through shared memory in a ring of cp.async
 *      stages. A warp keeps 32 x RANK / (4 or 2) sums in registers, in fp32.
 *   2. The intermediate goes to shared memory as 16-bit numbers, where it is the left operand.
 *   3. Tiles of `second`, RANK x WIDTH, stream through the same memory in two stages; a warp makes 32 x WIDTH / (4 or 2) of c
 *      from each.
 *
 * RANK is the rank rounded up to 64, 128 or 256; the excess is zeros, which cp.async writes for bytes beyond the operand. With
 * few tiles of rows, several blocks share the columns of c and each makes the intermediate anew. Each block reads both weights,
 * from L2: 128 rows halve that, and 64 rows give more blocks. Rank 256 has no room for 128 rows.
 *
 * Operands lie on 16 bytes with strides in multiples of 8 elements, and k, rank and n are multiples of 8: then a vector of 8
 * elements is inside or outside as a whole. Rows of shared memory are 8 elements longer than their tile: ldmatrix then meets no
 * bank twice. All but dx at rank 256 fits the 99 KiB that a block gets on sm_86, sm_89 and sm_120.
 *
 * The gradient dx = (dy u) v is the same with operands stored the other way round, see struct lath_pair. */
#include "core/numbers.h"
#include "device/ptx.h"
#include "lowrank/pair.h"

enum { THREADS = 256, WARPS = THREADS / 32, SLICE = 32, PAD = 8, VECTOR = 8, WARP_ROWS = 32 };

/* ---- sizes, in elements -------------------------------------------------------------------------------------------------- */

template <int ROWS_, int RANK_, bool TRANSPOSED_>
struct shape {
  static constexpr int ROWS = ROWS_, RANK = RANK_;
  static constexpr bool TRANSPOSED = TRANSPOSED_;
  static constexpr int WARPS_ACROSS = WARPS / (ROWS / WARP_ROWS);
  static constexpr int WIDTH = ROWS == 128 || RANK == 256 ? 64 : 128; /* columns of c in a tile */
  static constexpr int FIRST = TRANSPOSED ? SLICE * (RANK + PAD) : RANK * (SLICE + PAD);
  static constexpr int STAGE = ROWS * (SLICE + PAD) + FIRST; /* of step 1 */
  static constexpr int TILE = TRANSPOSED ? RANK * (WIDTH + PAD) : WIDTH * (RANK + PAD);
  static constexpr int RING = 2 * TILE > 3 * STAGE || RANK == 256 ? 2 * TILE : 3 * STAGE; /* shared by both steps */
  static constexpr int STAGES = RING / STAGE < 4 ? RING / STAGE : 4;
  static constexpr int BYTES = 2 * (RING + ROWS * (RANK + PAD));
};

/* ---- tiles on their way to shared memory --------------------------------------------------------------------------------- */

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
    lath_cp_async_16(to + r * (C + PAD) + c, inside ? from.data + (row + r) * from.stride + col + c : from.data,
                     inside ? 16 : 0);
  }
}

/* The slice of step 1 from k on: a as (ROWS, SLICE), then first as (RANK, SLICE), or (SLICE, RANK) when transposed. */
template <class H, class T>
static __device__ inline void copy_slice(T *stage, const struct source<T> &a, const struct source<T> &first, int64_t row,
                                         int64_t k) {
  copy_tile<H::ROWS, SLICE>(stage, a, row, k);
  T *to = stage + H::ROWS * (SLICE + PAD);
  if constexpr (H::TRANSPOSED)
    copy_tile<SLICE, H::RANK>(to, first, k, 0);
  else
    copy_tile<H::RANK, SLICE>(to, first, 0, k);
}

template <class H, class T>
static __device__ inline void copy_second(T *to, const struct source<T> &second, int64_t column) {
  if constexpr (H::TRANSPOSED)
    copy_tile<H::RANK, H::WIDTH>(to, second, 0, column);
  else
    copy_tile<H::WIDTH, H::RANK>(to, second, column, 0);
}

/* ---- tensor cores -------------------------------------------------------------------------------------------------------- */

static __device__ inline void multiply(float *d, const unsigned *a, const unsigned *b, __half) {
  lath_mma_m16n8k16_f16(d, a, b);
}
static __device__ inline void multiply(float *d, const unsigned *a, const unsigned *b, __nv_bfloat16) {
  lath_mma_m16n8k16_bf16(d, a, b);
}

/* sum (32, 8 N) += a (32, DEPTH) b (DEPTH, 8 N) for this warp. a has rows of A_STRIDE elements. b is stored as (8 N, DEPTH), or
 * as (DEPTH, 8 N) when TRANSPOSED, with rows of B_STRIDE elements. N is even. */
template <int N, int DEPTH, int A_STRIDE, int B_STRIDE, bool TRANSPOSED, class T>
static __device__ inline void multiply_tiles(float (*sum)[N][4], const T *a, const T *b) {
  const int lane = (int)threadIdx.x % 32;
  /* Lane 8 i + j points at row j of matrix i. Of a: rows 0-7 and 8-15, then the same 8 columns on. Of b: columns k 0-7 and 8-15
   * of the first 8 rows, then of the next 8; transposed, rows k 0-7 and 8-15 of the first 8 columns, then of the next 8. */
  const T *a_row = a + lane % 16 * A_STRIDE + lane / 16 * 8;
  const T *b_row =
      TRANSPOSED ? b + lane % 16 * B_STRIDE + lane / 16 * 8 : b + (lane / 16 * 8 + lane % 8) * B_STRIDE + lane / 8 % 2 * 8;
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

/* ---- from registers to memory -------------------------------------------------------------------------------------------- */

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

/* intermediate (32, 8 N of this warp) = sum + inner_bias, rounded, in rows of STRIDE elements. Zeros beyond the rank: infinity
 * times the zeros that pad `first` has made NaN there. */
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
template <class H, class T>
static __device__ inline void store_intermediate(T *p, const T *from, int64_t row, int64_t rows, int64_t rank) {
  for (int i = (int)threadIdx.x; i < H::ROWS * H::RANK / VECTOR; i += THREADS) {
    const int r = i / (H::RANK / VECTOR), j = i % (H::RANK / VECTOR) * VECTOR;
    if (row + r >= rows || j >= rank) continue;
    *reinterpret_cast<lath_16_bytes *>(p + (row + r) * rank + j) =
        *reinterpret_cast<const lath_16_bytes *>(from + r * (H::RANK + PAD) + j);
  }
}

/* c (32, 8 N of this warp) = sum + bias. A thread holds 2 neighbours of each 8 columns; of two such groups, it gives its 2 of
 * one to the thread beside it and takes that one's 2 of the other, so that it stores 4 neighbours and four threads fill a
 * sector of 32 bytes. */
template <int N, class T>
static __device__ inline void store_tile(const struct source<T> &c, float (*sum)[N][4], const T *bias, int64_t row,
                                         int64_t column) {
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

/* ---- the kernel ---------------------------------------------------------------------------------------------------------- */

template <class T>
struct fused_args {
  struct source<T> a, first, second, c; /* as stored */
  int64_t k, rank;
  const T *inner_bias, *bias;
  T *p;
};

/* Step 1: this warp's part of the intermediate, (32, 8 N), in registers. */
template <class H, int N, class T>
static __device__ inline void make_intermediate(float (*sum)[N][4], T *ring, const struct fused_args<T> &g, int64_t row,
                                                int warp_row, int warp_across) {
  const int64_t steps = (g.k + SLICE - 1) / SLICE;
#pragma unroll
  for (int s = 0; s < H::STAGES - 1; s++) {
    if (s < steps) copy_slice<H>(ring + s * H::STAGE, g.a, g.first, row, (int64_t)s * SLICE);
    lath_cp_async_commit();
  }
  int at = 0, next = H::STAGES - 1;
#pragma unroll 1
  for (int64_t step = 0; step < steps; step++) {
    lath_cp_async_wait<H::STAGES - 2>();
    __syncthreads(); /* this stage has arrived for all threads, and all are done with the one before it, which is filled next */
    if (step + H::STAGES - 1 < steps) copy_slice<H>(ring + next * H::STAGE, g.a, g.first, row, (step + H::STAGES - 1) * SLICE);
    lath_cp_async_commit();
    const T *a = ring + at * H::STAGE + warp_row * (SLICE + PAD), *b = ring + at * H::STAGE + H::ROWS * (SLICE + PAD);
    if constexpr (H::TRANSPOSED)
      multiply_tiles<N, SLICE, SLICE + PAD, H::RANK + PAD, true>(sum, a, b + warp_across * 8 * N);
    else
      multiply_tiles<N, SLICE, SLICE + PAD, SLICE + PAD, false>(sum, a, b + warp_across * 8 * N * (SLICE + PAD));
    at = at + 1 < H::STAGES ? at + 1 : 0;
    next = next + 1 < H::STAGES ? next + 1 : 0;
  }
  lath_cp_async_wait<0>();
  __syncthreads(); /* the ring is free */
}

/* Step 3: tiles of c from `tile` to `end`. */
template <class H, class T>
static __device__ inline void make_c(T *ring, const T *intermediate, const struct fused_args<T> &g, int64_t row, int64_t tile,
                                     int64_t end, int warp_row, int warp_across) {
  constexpr int N = H::WIDTH / H::WARPS_ACROSS / 8;
  if (tile < end) copy_second<H>(ring, g.second, tile * H::WIDTH);
  lath_cp_async_commit();
#pragma unroll 1
  for (int at = 0; tile < end; tile++, at ^= 1) {
    lath_cp_async_wait<0>();
    __syncthreads(); /* as above; the first time also for the intermediate */
    if (tile + 1 < end) copy_second<H>(ring + (at ^ 1) * H::TILE, g.second, (tile + 1) * H::WIDTH);
    lath_cp_async_commit();
    float sum[2][N][4] = {};
    const T *a = intermediate + warp_row * (H::RANK + PAD), *b = ring + at * H::TILE;
    if constexpr (H::TRANSPOSED)
      multiply_tiles<N, H::RANK, H::RANK + PAD, H::WIDTH + PAD, true>(sum, a, b + warp_across * 8 * N);
    else
      multiply_tiles<N, H::RANK, H::RANK + PAD, H::RANK + PAD, false>(sum, a, b + warp_across * 8 * N * (H::RANK + PAD));
    store_tile<N>(g.c, sum, g.bias, row + warp_row, tile * H::WIDTH + warp_across * 8 * N);
  }
  lath_cp_async_wait<0>();
}

/* launch: fused threads=256 shared=dynamic (lath_fused_shared_bytes) */
template <class H, class T>
static __global__ void __launch_bounds__(THREADS, H::RANK == 256 ? 1 : 2) fused(struct fused_args<T> g) {
  constexpr int N = H::RANK / H::WARPS_ACROSS / 8;
  LATH_DYNAMIC_SHARED(T, ring);
  T *intermediate = ring + H::RING;
  const int warp = (int)threadIdx.x / 32, warp_row = warp / H::WARPS_ACROSS * WARP_ROWS, warp_across = warp % H::WARPS_ACROSS;
  const int64_t row = (int64_t)blockIdx.x * H::ROWS, tiles = (g.c.cols + H::WIDTH - 1) / H::WIDTH;
  float sum[2][N][4] = {};
  make_intermediate<H, N>(sum, ring, g, row, warp_row, warp_across);
  keep_intermediate<N, H::RANK + PAD>(intermediate + warp_row * (H::RANK + PAD), sum, g.inner_bias, warp_across * 8 * N,
                                      g.rank);
  if (g.p && blockIdx.y == 0) {
    __syncthreads();
    store_intermediate<H>(g.p, intermediate, row, g.c.rows, g.rank);
  }
  make_c<H>(ring, intermediate, g, row, tiles * blockIdx.y / gridDim.y, tiles * (blockIdx.y + 1) / gridDim.y, warp_row,
            warp_across);
}

/* ---- host ---------------------------------------------------------------------------------------------------------------- */

/* The one place that knows which shapes there are: use(shape) for that of the call. */
template <bool TRANSPOSED, class Use>
static auto with_rank(int64_t rank, int tile_rows, Use use) {
  if (rank <= 64) return tile_rows == 128 ? use(shape<128, 64, TRANSPOSED>()) : use(shape<64, 64, TRANSPOSED>());
  if (rank <= 128) return tile_rows == 128 ? use(shape<128, 128, TRANSPOSED>()) : use(shape<64, 128, TRANSPOSED>());
  return use(shape<64, 256, TRANSPOSED>());
}

template <class Use>
static auto with_shape(const struct lath_pair *q, int tile_rows, Use use) {
  return q->transposed ? with_rank<true>(q->rank, tile_rows, use) : with_rank<false>(q->rank, tile_rows, use);
}

extern "C" int lath_fused_shared_bytes(const struct lath_pair *q, int tile_rows) {
  return with_shape(q, tile_rows, [](auto h) { return (int)decltype(h)::BYTES; });
}

extern "C" int lath_fused_has_tile(const struct lath_pair *q, int tile_rows) {
  return tile_rows == 64 || (tile_rows == 128 && q->rank <= 128);
}

extern "C" int lath_fused_shares(const struct lath_pair *q, int tile_rows, int multiprocessors) {
  const int64_t tiles = lath_blocks(q->n, with_shape(q, tile_rows, [](auto h) { return (int)decltype(h)::WIDTH; }));
  int64_t shares = multiprocessors / lath_blocks(q->rows, tile_rows);
  /* Each further block repeats the first product, which should not cost more than what it takes over of the second. */
  const int64_t most = 1 + q->n / q->k;
  if (shares > most) shares = most;
  if (shares > tiles) shares = tiles;
  return shares > 1 ? (int)shares : 1;
}

template <class T>
static struct source<T> as_source(const void *data, int64_t stride, int64_t rows, int64_t cols) {
  const struct source<T> s = { static_cast<const T *>(data), stride, rows, cols };
  return s;
}

template <class H, class T>
static cudaError_t launch(const struct lath_pair *q, int shares, int ordinal, void *stream) {
  static int allowed[LATH_MAX_DEVICES];
  const int error = lath_device_allow_shared(reinterpret_cast<const void *>(&fused<H, T>), H::BYTES, ordinal, allowed);
  if (error) return (cudaError_t)error;
  const bool transposed = H::TRANSPOSED;
  struct fused_args<T> g;
  g.a = as_source<T>(q->a, q->s_a, q->rows, q->k);
  g.first = transposed ? as_source<T>(q->first, q->s_first, q->k, q->rank) : as_source<T>(q->first, q->s_first, q->rank, q->k);
  g.second =
      transposed ? as_source<T>(q->second, q->s_second, q->rank, q->n) : as_source<T>(q->second, q->s_second, q->n, q->rank);
  g.c = as_source<T>(q->c, q->s_c, q->rows, q->n);
  g.k = q->k, g.rank = q->rank;
  g.inner_bias = static_cast<const T *>(q->inner_bias), g.bias = static_cast<const T *>(q->bias), g.p = static_cast<T *>(q->p);
  const dim3 grid((unsigned)lath_blocks(q->rows, H::ROWS), (unsigned)shares);
  LATH_LAUNCH((fused<H, T>), grid, dim3(THREADS), H::BYTES, stream, g);
  return cudaGetLastError();
}

extern "C" int lath_cuda_fused(const struct lath_pair *q, int tile_rows, int multiprocessors, int ordinal, void *stream) {
  const int shares = lath_fused_shares(q, tile_rows, multiprocessors);
  if (lath_blocks(q->rows, tile_rows) > INT32_MAX) return cudaErrorInvalidValue;
  return with_shape(q, tile_rows, [=](auto h) {
    typedef decltype(h) H;
    return q->dtype == LATH_F16 ? launch<H, __half>(q, shares, ordinal, stream)
                                : launch<H, __nv_bfloat16>(q, shares, ordinal, stream);
  });
}
