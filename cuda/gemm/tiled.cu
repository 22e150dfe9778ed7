/* SPDX-License-Identifier: Apache-2.0
 * tiled.cu - c (m, n) = op(a) (m, k) op(b) (k, n) + bias on ordinary arithmetic units: what there is where no cuBLAS is, or
 * where its demands on strides and types are not met.
 *
 * Any extents, strides and alignment; a and b row-major, each perhaps transposed. A block of 256 threads makes 64 x 64 elements
 * of c, a thread 4 x 4 of them, 16 apart, so that neighbouring threads store neighbouring columns. Slices of 16 along k are
 * converted to the type of the sums (float; double for double) on their way into shared memory. Every sum is one chain in the
 * order of k.
 *
 * A small c with a long k would leave the GPU idle, as the gradient of a small weight does: one tile is one block. There k is cut into
 * parts, each with blocks of its own that leave its sums in fp32 (double), and a second kernel adds the parts in order. */
#include "core/numbers.h"
#include "gemm/product.h"
#include "gemm/rows.h"

enum { TILE = 64, DEPTH = 16, THREADS = 256, SIDE = 16, EACH = TILE / SIDE, LEAST_PART = 256, MOST_PARTS = 1024 };

struct tiled_operand {
  const void *data;
  int64_t s_outer, s_k; /* steps in elements along m or n, and along k */
  int64_t outer;        /* m or n */
};

struct tiled_args {
  struct tiled_operand a, b;
  int64_t k, part_k; /* in each part; a multiple of DEPTH, or all of it */
  const void *bias;
  void *c; /* of the first part; the others follow without a gap */
  int64_t s_c;
  int accumulate;
};

/* slice[d][i] = element (from + i, k0 + d), or 0 outside. Neighbouring threads take elements that are neighbours in memory. */
template <class T, class S>
static __device__ void load_slice(S (*slice)[TILE + 1], const struct tiled_operand *o, int64_t from, int64_t k0, int64_t k) {
  const T *data = static_cast<const T *>(o->data);
  for (int e = (int)threadIdx.x; e < TILE * DEPTH; e += THREADS) {
    const int d = o->s_k == 1 ? e % DEPTH : e / TILE, i = o->s_k == 1 ? e / DEPTH : e % TILE;
    const bool inside = from + i < o->outer && k0 + d < k;
    slice[d][i] = inside ? (S)lath_number(data[(from + i) * o->s_outer + (k0 + d) * o->s_k]) : (S)0;
  }
}

template <class S>
static __device__ void add_slice(S (*sum)[EACH], const S (*a)[TILE + 1], const S (*b)[TILE + 1], int ty, int tx) {
#pragma unroll 4
  for (int d = 0; d < DEPTH; d++) {
    S x[EACH], y[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) x[i] = a[d][ty + i * SIDE], y[i] = b[d][tx + i * SIDE];
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int j = 0; j < EACH; j++) sum[i][j] += x[i] * y[j];
  }
}

template <class C, class S>
static __device__ void store_tile(const struct tiled_args *g, S (*sum)[EACH], int64_t row, int64_t column, int ty, int tx) {
  C *c = static_cast<C *>(g->c) + blockIdx.y * g->a.outer * g->s_c;
  const C *bias = static_cast<const C *>(g->bias);
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int64_t r = row + ty + i * SIDE, q = column + tx + j * SIDE;
      if (r >= g->a.outer || q >= g->b.outer) continue;
      S value = sum[i][j];
      if (bias) value += lath_number(bias[q]);
      if (g->accumulate) value += lath_number(c[r * g->s_c + q]);
      lath_round(value, &c[r * g->s_c + q]);
    }
}

/* launch: tiled threads=256 shared=0 */
template <class A, class B, class C>
static __global__ void __launch_bounds__(THREADS, 2) tiled(struct tiled_args g) {
  typedef typename lath_sum_of<C>::type S;
  __shared__ S a[DEPTH][TILE + 1];
  __shared__ S b[DEPTH][TILE + 1];
  const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
  const int64_t from = blockIdx.y * g.part_k, to = from + g.part_k < g.k ? from + g.part_k : g.k;
  const int64_t across = (g.b.outer + TILE - 1) / TILE, tiles = across * ((g.a.outer + TILE - 1) / TILE);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t row = tile / across * TILE, column = tile % across * TILE;
    S sum[EACH][EACH] = {};
    for (int64_t k0 = from; k0 < to; k0 += DEPTH) {
      load_slice<A>(a, &g.a, row, k0, to);
      load_slice<B>(b, &g.b, column, k0, to);
      __syncthreads();
      add_slice(sum, a, b, ty, tx);
      __syncthreads(); /* all have read the slices before the next ones arrive */
    }
    store_tile<C>(&g, sum, row, column, ty, tx);
  }
}

static int64_t tiles_of(int64_t m, int64_t n) { return ((m + TILE - 1) / TILE) * ((n + TILE - 1) / TILE); }

static int64_t part_of(int64_t k, int64_t parts) { return parts > 1 ? (k + parts * DEPTH - 1) / (parts * DEPTH) * DEPTH : k; }

template <class A, class B, class C>
static void launch(const struct lath_cuda_gemm *p, void *c, int64_t parts, void *stream) {
  const struct tiled_args g = {{p->a, p->a_transposed ? 1 : p->s_a, p->a_transposed ? p->s_a : 1, p->m},
                               {p->b, p->b_transposed ? p->s_b : 1, p->b_transposed ? 1 : p->s_b, p->n},
                               p->k,
                               part_of(p->k, parts),
                               p->bias,
                               c,
                               p->s_c,
                               p->accumulate};
  const int64_t tiles = tiles_of(p->m, p->n), most = 1 << 30;
  const dim3 grid((unsigned)(tiles < most ? tiles : most), (unsigned)parts);
  LATH_LAUNCH((tiled<A, B, C>), grid, dim3(THREADS), 0, stream, g);
}

template <class T>
static void launch_16_bit(const struct lath_cuda_gemm *p, void *stream) {
  if (p->a_type == LATH_F32) return launch<float, T, T>(p, p->c, 1, stream);
  if (p->b_type == LATH_F32) return launch<T, float, T>(p, p->c, 1, stream);
  if (p->c_type == LATH_F32) return launch<T, T, float>(p, p->c, 1, stream);
  launch<T, T, T>(p, p->c, 1, stream);
}

extern "C" int lath_cuda_tiled(const struct lath_cuda_gemm *p, void *stream) {
  const lath_dtype type = p->a_type == LATH_F32 ? p->b_type : p->a_type;
  if (p->m == 0 || p->n == 0) return cudaSuccess;
  if (type == LATH_F32) launch<float, float, float>(p, p->c, 1, stream);
  if (type == LATH_F64) launch<double, double, double>(p, p->c, 1, stream);
  if (type == LATH_F16) launch_16_bit<__half>(p, stream);
  if (type == LATH_BF16) launch_16_bit<__nv_bfloat16>(p, stream);
  return cudaGetLastError();
}

/* ---- in parts ------------------------------------------------------------------------------------------------------------ */

extern "C" int64_t lath_cuda_tiled_parts(int64_t m, int64_t n, int64_t k, int multiprocessors) {
  const int64_t tiles = tiles_of(m, n), wanted = 2 * (int64_t)multiprocessors; /* two blocks of a multiprocessor */
  int64_t parts = tiles > 0 ? wanted / tiles : 1;
  if (parts > k / LEAST_PART) parts = k / LEAST_PART;
  if (parts > MOST_PARTS) parts = MOST_PARTS;
  return parts > 1 ? parts : 1;
}

extern "C" int lath_cuda_tiled_in_parts(const struct lath_cuda_gemm *p, int64_t parts, void *partial, void *stream) {
  if (parts == 1) return lath_cuda_tiled(p, stream);
  if (p->c_type == LATH_F32) launch<float, float, float>(p, partial, parts, stream);
  if (p->c_type == LATH_F64) launch<double, double, double>(p, partial, parts, stream);
  if (p->c_type == LATH_F16) launch<__half, __half, float>(p, partial, parts, stream);
  if (p->c_type == LATH_BF16) launch<__nv_bfloat16, __nv_bfloat16, float>(p, partial, parts, stream);
  const cudaError_t error = cudaGetLastError();
  return error ? error : lath_cuda_add_parts(p->c_type, parts, p->m * p->n, partial, p->c, stream);
}
