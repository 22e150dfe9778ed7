/* SPDX-License-Identifier: Apache-2.0
 * few.cu - y (rows, out) = (x v^T + inner_bias) u^T + bias for 1 to 16 rows: what generating one word at a time does all day.
 *
 * Both weights are read once and nothing else of size is, so the time is that of reading them, if enough loads are under way on
 * all multiprocessors. Two kernels, because the second product needs all of the first:
 *
 *   few_first    A block of 8 warps takes GROUP rows of v (rank, in) and one share of `in`. Lanes read 16 bytes side by side;
 *                each vector of x is used for GROUP rows of v. Lanes are folded by shuffles, warps through shared memory, and
 *                the block leaves rows x GROUP sums in partial (splits, rows, rank).
 *   few_second   Each block adds the splits in order into shared memory (p, in the type of sums: it is not rounded on the way),
 *                then 8 lanes take a row of u (out, rank), 16 bytes each, and are folded by shuffles.
 *
 * Any extents, strides and alignment: where rows of a weight or of x are not on 16 bytes, the same loop loads single elements.
 * Every order of additions is fixed by the shape and the number of multiprocessors. */
#include "core/numbers.h"
#include "lowrank/pair.h"

enum { THREADS = 256, WARPS = THREADS / 32, SUB_LANES = 8, OUT_ROWS = THREADS / SUB_LANES, CHUNK = 256, MOST_SPLITS = 8 };

/* Rows of v in a block: 4, so that the sums for 16 rows are 64 registers; 2 in double. */
template <class S>
static __device__ __host__ constexpr int group() {
  return sizeof(S) == 8 ? 2 : 4;
}

struct few_matrix {
  const void *data;
  int64_t stride;
  int vectors; /* 1: every row lies on 16 bytes */
};

/* e = N elements from (row, k) on, zeros beyond cols. */
template <int N, class T>
static __device__ inline void load_some(T (&e)[N], const struct few_matrix *m, int64_t row, int64_t k, int64_t cols) {
  const T *from = static_cast<const T *>(m->data) + row * m->stride + k;
  if (m->vectors && k + N <= cols) return lath_load_16(e, from);
#pragma unroll
  for (int i = 0; i < N; i++) {
    lath_round((typename lath_sum_of<T>::type)0, &e[i]);
    if (k + i < cols) e[i] = from[i];
  }
}

/* Adds up v[i] over LANES neighbouring lanes, for COUNT values at once: at each step a lane keeps half of the values and hands
 * the others to its partner, so that about COUNT + log2(LANES) shuffles do the work of COUNT log2(LANES). */
template <int COUNT, int LANES, class S>
static __device__ inline void fold(S *v, int lane) {
  constexpr int STEP = LANES / 2, HALF = COUNT / 2;
  const bool upper = lane & STEP;
  if constexpr (COUNT == 1) v[0] += __shfl_xor_sync(0xffffffffu, v[0], STEP);
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    const S given = upper ? v[i] : v[i + HALF], kept = upper ? v[i + HALF] : v[i];
    v[i] = kept + __shfl_xor_sync(0xffffffffu, given, STEP);
  }
  if constexpr (STEP > 1) fold<(COUNT > 1 ? HALF : 1), STEP>(v, lane);
}

/* What a lane holds after fold: `kept` values, from lane / alike * kept on; `alike` neighbouring lanes hold the same. */
template <int COUNT, int LANES>
struct folded {
  static constexpr int kept = COUNT > LANES ? COUNT / LANES : 1, alike = COUNT > LANES ? 1 : LANES / COUNT;
};

/* launch: few_first threads=256 shared=0 */
template <class T, int ROWS>
static __global__ void __launch_bounds__(THREADS, 1) few_first(int rows, int64_t in, int64_t rank, struct few_matrix x,
                                                               struct few_matrix v, typename lath_sum_of<T>::type *partial) {
  typedef typename lath_sum_of<T>::type S;
  constexpr int GROUP = group<S>(), COUNT = GROUP * ROWS, VECTOR = 16 / sizeof(T), STEP = 32 * VECTOR;
  __shared__ S warp_sum[WARPS][COUNT];
  const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
  const int64_t from = (int64_t)blockIdx.x * GROUP, steps = (in + STEP - 1) / STEP;
  const int64_t begin = steps * blockIdx.y / gridDim.y, end = steps * (blockIdx.y + 1) / gridDim.y;
  S sum[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) sum[i] = 0;

  for (int64_t step = begin + warp; step < end; step += WARPS) {
    const int64_t k = step * STEP + lane * VECTOR;
    T weight[GROUP][VECTOR];
#pragma unroll
    for (int g = 0; g < GROUP; g++) load_some(weight[g], &v, from + g < rank ? from + g : rank - 1, k, in);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      T number[VECTOR];
      load_some(number, &x, r < rows ? r : 0, k, in);
#pragma unroll
      for (int g = 0; g < GROUP; g++)
#pragma unroll
        for (int e = 0; e < VECTOR; e++) sum[g * ROWS + r] += (S)lath_number(weight[g][e]) * (S)lath_number(number[e]);
    }
  }

  fold<COUNT, 32>(sum, lane);
  typedef folded<COUNT, 32> mine;
  if (lane % mine::alike == 0) {
#pragma unroll
    for (int i = 0; i < mine::kept; i++) warp_sum[warp][lane / mine::alike * mine::kept + i] = sum[i];
  }
  __syncthreads();
  const int i = (int)threadIdx.x, r = i % ROWS;
  if (i >= COUNT || r >= rows || from + i / ROWS >= rank) return;
  S total = warp_sum[0][i];
  for (int w = 1; w < WARPS; w++) total += warp_sum[w][i];
  partial[((int64_t)blockIdx.y * rows + r) * rank + from + i / ROWS] = total;
}

struct few_second_args {
  int rows, splits;
  int64_t rank, out;
  struct few_matrix u;
  const void *partial, *inner_bias, *bias;
  void *p, *y;
  int64_t s_y;
};

/* p[r][j] = the intermediate at (r, from + j), zeros beyond; the first block also stores it. */
template <class T, class S>
static __device__ void gather(S (*p)[CHUNK], const struct few_second_args *g, int rows, int64_t from) {
  const S *partial = static_cast<const S *>(g->partial);
  const T *inner_bias = static_cast<const T *>(g->inner_bias);
  for (int i = (int)threadIdx.x; i < rows * CHUNK; i += THREADS) {
    const int r = i / CHUNK;
    const int64_t j = from + i % CHUNK;
    S total = 0;
    if (r < g->rows && j < g->rank) {
      for (int split = 0; split < g->splits; split++) total += partial[((int64_t)split * g->rows + r) * g->rank + j];
      if (inner_bias) total += (S)lath_number(inner_bias[j]);
      if (g->p && blockIdx.x == 0) lath_round(total, static_cast<T *>(g->p) + r * g->rank + j);
    }
    p[r][i % CHUNK] = total;
  }
}

/* launch: few_second threads=256 shared=0 */
template <class T, int ROWS>
static __global__ void __launch_bounds__(THREADS, 1) few_second(struct few_second_args g) {
  typedef typename lath_sum_of<T>::type S;
  constexpr int VECTOR = 16 / sizeof(T), LOAD = 16 / sizeof(S);
  __shared__ __align__(16) S p[ROWS][CHUNK];
  const int lane = (int)threadIdx.x % SUB_LANES;
  const int64_t o = (int64_t)blockIdx.x * OUT_ROWS + threadIdx.x / SUB_LANES, row = o < g.out ? o : g.out - 1;
  S sum[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) sum[r] = 0;

  for (int64_t from = 0; from < g.rank; from += CHUNK) {
    if (from > 0) __syncthreads(); /* all have read the chunk before */
    gather<T>(p, &g, ROWS, from);
    __syncthreads();
    const int width = g.rank - from < CHUNK ? (int)(g.rank - from) : CHUNK;
#pragma unroll(ROWS <= 4 ? 4 : 2)
    for (int j = lane * VECTOR; j < width; j += SUB_LANES * VECTOR) {
      T weight[VECTOR];
      load_some(weight, &g.u, row, from + j, g.rank);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        S number[VECTOR];
#pragma unroll
        for (int e = 0; e < VECTOR; e += LOAD) lath_load_16(&number[e], &p[r][j + e]);
#pragma unroll
        for (int e = 0; e < VECTOR; e++) sum[r] += (S)lath_number(weight[e]) * number[e];
      }
    }
  }

  fold<ROWS, SUB_LANES>(sum, lane);
  typedef folded<ROWS, SUB_LANES> mine;
  if (o >= g.out || lane % mine::alike) return;
#pragma unroll
  for (int i = 0; i < mine::kept; i++) {
    const int r = lane / mine::alike * mine::kept + i;
    if (r >= g.rows) continue;
    if (g.bias) sum[i] += (S)lath_number(static_cast<const T *>(g.bias)[o]);
    lath_round(sum[i], static_cast<T *>(g.y) + r * g.s_y + o);
  }
}

/* ---- host ---------------------------------------------------------------------------------------------------------------- */

static struct few_matrix matrix(const struct lath_pair *q, const void *data, int64_t rows, int64_t stride) {
  const uint64_t bytes = rows > 1 ? (uint64_t)stride * lath_dtype_size(q->dtype) : 0;
  const struct few_matrix m = {data, stride, ((uintptr_t)data | bytes) % 16 == 0};
  return m;
}

extern "C" int lath_few_splits(const struct lath_pair *q, int multiprocessors) {
  const int64_t groups = lath_blocks(q->rank, q->dtype == LATH_F64 ? 2 : 4),
                step = 32 * 16 / (int64_t)lath_dtype_size(q->dtype);
  const int64_t longest = q->k / (step * WARPS); /* each warp has work */
  int64_t splits = lath_blocks(multiprocessors, groups > 0 ? groups : 1);
  if (splits > longest) splits = longest;
  if (splits > MOST_SPLITS) splits = MOST_SPLITS;
  return splits > 1 ? (int)splits : 1;
}

template <class T, int ROWS>
static cudaError_t launch(const struct lath_pair *q, void *partial, int splits, void *stream) {
  typedef typename lath_sum_of<T>::type S;
  const int64_t groups = lath_blocks(q->rank, group<S>()), blocks = lath_blocks(q->n, OUT_ROWS);
  if (groups > INT32_MAX || blocks > INT32_MAX) return cudaErrorInvalidValue;
  LATH_LAUNCH((few_first<T, ROWS>), dim3((unsigned)groups, (unsigned)splits), dim3(THREADS), 0, stream, (int)q->rows, q->k,
              q->rank, matrix(q, q->a, q->rows, q->s_a), matrix(q, q->first, q->rank, q->s_first), static_cast<S *>(partial));
  const cudaError_t error = cudaGetLastError();
  if (error) return error;
  const struct few_second_args g = {(int)q->rows, splits,        q->rank, q->n, matrix(q, q->second, q->n, q->s_second),
                                    partial,      q->inner_bias, q->bias, q->p, q->c,
                                    q->s_c};
  LATH_LAUNCH((few_second<T, ROWS>), dim3((unsigned)blocks), dim3(THREADS), 0, stream, g);
  return cudaGetLastError();
}

template <class T>
static cudaError_t launch_rows(const struct lath_pair *q, void *partial, int splits, void *stream) {
  if (q->rows == 1) return launch<T, 1>(q, partial, splits, stream);
  if (q->rows == 2) return launch<T, 2>(q, partial, splits, stream);
  if (q->rows <= 4) return launch<T, 4>(q, partial, splits, stream);
  if (q->rows <= 8) return launch<T, 8>(q, partial, splits, stream);
  return launch<T, 16>(q, partial, splits, stream);
}

extern "C" int lath_cuda_few(const struct lath_pair *q, void *partial, int splits, void *stream) {
  switch (q->dtype) {
    case LATH_F32:
      return launch_rows<float>(q, partial, splits, stream);
    case LATH_F64:
      return launch_rows<double>(q, partial, splits, stream);
    case LATH_F16:
      return launch_rows<__half>(q, partial, splits, stream);
    case LATH_BF16:
      return launch_rows<__nv_bfloat16>(q, partial, splits, stream);
  }
  return cudaErrorInvalidValue;
}
