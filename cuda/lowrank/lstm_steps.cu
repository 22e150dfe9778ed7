/* SPDX-License-Identifier: Apache-2.0
 * lstm_steps.cu - the kernels of one step of the low-rank LSTM: a product of few rows and what is done with its sums.
 *
 * A step is short (some microseconds, most of it the launch) and the next one waits for it, so what counts is how soon all of the
 * weight has been read. 8 lanes take one item, which is 1 or 4 rows of w, and up to 16 rows of a; they read 16 bytes side by side
 * along k, straight from L2 or L1, and keep all sums in registers: nothing waits but for its own loads. Each vector of w is used
 * for all samples and each of a for all rows of the item. Then lanes are folded by shuffles, which leaves each lane with samples
 * of its own. Where there are too few items to go round, several warps share one along k, and add up in shared memory.
 *
 * An item of `cells` is a unit with its four gates, so a lane has all it needs for the cell. Every order of additions is fixed by
 * the shape and the number of multiprocessors. */
#include "core/numbers.h"
#include "lowrank/lstm_steps.h"

enum { THREADS = 256, WARPS = THREADS / 32, LANES = 8, WARP_ITEMS = 32 / LANES, MOST_SAMPLES = 16, LEAST_SHARE = 64 };

/* A product as a block sees it. */
struct product_args {
  int64_t m, k;
  int64_t items, s_item, s_row; /* row r of an item is row item s_item + r s_row of w */
  int64_t n;
  const void *a, *w;
  int64_t s_a, s_w;
  int shares; /* warps that share an item along k: 1, 2, 4 or 8 */
};

/* What a lane holds when its sums have been folded: `kept` samples from `first` on; of `alike` neighbours the first one speaks. */
template <int SAMPLES>
struct folded {
  static constexpr int kept = SAMPLES > LANES ? SAMPLES / LANES : 1, alike = SAMPLES > LANES ? 1 : LANES / SAMPLES;
};

/* Adds up sum over LANES neighbouring lanes. At each step a lane keeps half of the samples and hands the others to its partner. */
template <int SAMPLES, int ROWS, int STEP, class S>
static __device__ inline void fold(S (*sum)[ROWS], int lane) {
  constexpr int HALF = SAMPLES / 2;
  const bool upper = lane & STEP;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if constexpr (SAMPLES == 1) sum[0][r] += __shfl_xor_sync(0xffffffffu, sum[0][r], STEP);
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      const S given = upper ? sum[i][r] : sum[i + HALF][r], kept = upper ? sum[i + HALF][r] : sum[i][r];
      sum[i][r] = kept + __shfl_xor_sync(0xffffffffu, given, STEP);
    }
  }
  if constexpr (STEP > 1) fold<(SAMPLES > 1 ? HALF : 1), ROWS, STEP / 2>(sum, lane);
}

/* Where a lane stands: its item, its samples, its share of k. Beyond the last item or sample it does the work of the last one and
 * keeps silent. */
struct place {
  int lane, warp, share;
  int64_t item, sample; /* sample: of the first one of the block */
};

static __device__ inline struct place find_place(const struct product_args *g, int samples) {
  struct place at;
  at.lane = (int)threadIdx.x % 32;
  at.warp = (int)threadIdx.x / 32;
  at.share = at.warp % g->shares;
  at.item = ((int64_t)blockIdx.x * (WARPS / g->shares) + at.warp / g->shares) * WARP_ITEMS + at.lane / LANES;
  at.sample = (int64_t)blockIdx.y * samples;
  return at;
}

template <class T, int ROWS, int SAMPLES>
static __device__ inline void add_share(const struct product_args *g, const struct place *at,
                                        typename lath_sum_of<T>::type (*sum)[ROWS]) {
  constexpr int VECTOR = 16 / sizeof(T), STEP = LANES * VECTOR;
  const int64_t item = at->item < g->items ? at->item : g->items - 1;
  const int64_t first = (int64_t)(at->share * STEP + at->lane % LANES * VECTOR);
  /* The same for all threads of the block, and so in registers that they share. */
  const int64_t last = g->m - 1 - at->sample;
  const T *w[ROWS], *a = static_cast<const T *>(g->a) + at->sample * g->s_a + first;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int64_t row = item * g->s_item + r * g->s_row;
    w[r] = static_cast<const T *>(g->w) + (row < g->n ? row : g->n - 1) * g->s_w + first;
  }
  for (int64_t k = 0; k < g->k - first; k += (int64_t)g->shares * STEP) {
    T weight[ROWS][VECTOR];
#pragma unroll
    for (int r = 0; r < ROWS; r++) lath_load_16(weight[r], w[r] + k);
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) {
      T e[VECTOR];
      lath_load_16(e, a + (s < last ? s : last) * g->s_a + k);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum[s][r] += weight[r][i] * e[i];
    }
  }
}

/* The sums over all of k, in the lanes of the first share. All threads of the block call it. */
template <class T, int ROWS, int SAMPLES>
static __device__ inline void multiply(const struct product_args *g, const struct place *at,
                                       typename lath_sum_of<T>::type (*sum)[ROWS]) {
  typedef typename lath_sum_of<T>::type S;
  constexpr int KEPT = folded<SAMPLES>::kept;
  __shared__ S of_warp[WARPS][KEPT * ROWS][32];
#pragma unroll
  for (int s = 0; s < SAMPLES; s++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[s][r] = 0;
  add_share<T, ROWS, SAMPLES>(g, at, sum);
  fold<SAMPLES, ROWS, LANES / 2>(sum, at->lane);
  if (g->shares == 1) return;
  if (at->share > 0) {
#pragma unroll
    for (int s = 0; s < KEPT; s++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) of_warp[at->warp][s * ROWS + r][at->lane] = sum[s][r];
  }
  __syncthreads();
  if (at->share > 0) return;
  for (int share = 1; share < g->shares; share++)
#pragma unroll
    for (int s = 0; s < KEPT; s++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) sum[s][r] += of_warp[at->warp + share][s * ROWS + r][at->lane];
}

/* finish(sample, item, sums of its rows) by the one lane that has them. */
template <int ROWS, int SAMPLES, class S, class Finish>
static __device__ inline void for_each_sum(const struct product_args *g, const struct place *at, int64_t samples,
                                           S (*sum)[ROWS], const Finish &finish) {
  constexpr int KEPT = folded<SAMPLES>::kept, ALIKE = folded<SAMPLES>::alike;
  const int lane = at->lane % LANES;
  if (at->share > 0 || lane % ALIKE || at->item >= g->items) return;
#pragma unroll
  for (int s = 0; s < KEPT; s++) {
    const int64_t sample = at->sample + lane / ALIKE * KEPT + s;
    if (sample < samples) finish(sample, at->item, sum[s]);
  }
}

/* ---- p = a w^T ------------------------------------------------------------------------------------------------------------- */

/* launch: lstm_project threads=256 shared=0 */
template <class T, int ROWS, int SAMPLES>
static __global__ void __launch_bounds__(THREADS) lstm_project(struct product_args g, T *p, int64_t s_p) {
  typedef typename lath_sum_of<T>::type S;
  const struct place at = find_place(&g, SAMPLES);
  S sum[SAMPLES][ROWS];
  multiply<T, ROWS, SAMPLES>(&g, &at, sum);
  for_each_sum<ROWS, SAMPLES>(&g, &at, g.m, sum, [&](int64_t sample, int64_t item, const S *value) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (item * ROWS + r < g.n) lath_round(value[r], &p[sample * s_p + item * ROWS + r]);
  });
}

/* ---- cells ----------------------------------------------------------------------------------------------------------------- */

static __device__ inline float exponential(float x) { return expf(x); }
static __device__ inline double exponential(double x) { return exp(x); }
static __device__ inline float hyperbolic(float x) { return tanhf(x); }
static __device__ inline double hyperbolic(double x) { return tanh(x); }

template <class S>
static __device__ inline S sigmoid(S x) {
  return (S)1 / ((S)1 + exponential(-x));
}

template <class T, class S>
static __device__ inline S element(const void *data, int64_t at) {
  return data ? (S)lath_number(static_cast<const T *>(data)[at]) : (S)0;
}

/* gate[] = i, f, g, o of a unit, from the sums before biases and activation. */
template <class T, class S>
static __device__ inline void activate(S *gate, const void *bias_in, const void *bias, int64_t hidden, int64_t unit) {
#pragma unroll
  for (int i = 0; i < 4; i++) gate[i] += element<T, S>(bias_in, i * hidden + unit) + element<T, S>(bias, i * hidden + unit);
#pragma unroll
  for (int i = 0; i < 4; i++) gate[i] = i == 2 ? hyperbolic(gate[i]) : sigmoid(gate[i]);
}

template <class T>
static __device__ inline void put(void *to, int64_t at, typename lath_sum_of<T>::type value) {
  if (to) lath_round(value, &static_cast<T *>(to)[at]);
}

template <class T, class S>
static __device__ inline void run_cell(const struct lath_cuda_lstm_cells *g, int64_t sample, int64_t unit, const S *sum) {
  const int64_t at = sample * g->hidden + unit, gates = 4 * sample * g->hidden + unit;
  S gate[4];
#pragma unroll
  for (int i = 0; i < 4; i++) gate[i] = sum[i] + element<T, S>(g->start, gates + i * g->hidden);
  activate<T>(gate, g->bias_in, g->bias, g->hidden, unit);
  const S c = gate[1] * element<T, S>(g->c, at) + gate[0] * gate[2], h = gate[3] * hyperbolic(c);
  put<T>(g->c, at, c);
  put<T>(g->c_kept, at, c);
  put<T>(g->h, sample * g->s_h + unit, h);
  put<T>(g->y, sample * g->s_y + unit, h);
  if (sample >= g->last) put<T>(g->hn, at, h);
#pragma unroll
  for (int i = 0; i < 4; i++) put<T>(g->gates, gates + i * g->hidden, gate[i]);
}

/* launch: lstm_cells threads=256 shared=0 */
template <class T, int SAMPLES>
static __global__ void __launch_bounds__(THREADS) lstm_cells(struct product_args g, struct lath_cuda_lstm_cells cells) {
  typedef typename lath_sum_of<T>::type S;
  const struct place at = find_place(&g, SAMPLES);
  S sum[SAMPLES][4];
  multiply<T, 4, SAMPLES>(&g, &at, sum);
  for_each_sum<4, SAMPLES>(&g, &at, g.m, sum,
                           [&](int64_t sample, int64_t unit, const S *value) { run_cell<T, S>(&cells, sample, unit, value); });
}

/* ---- gradients of cells ---------------------------------------------------------------------------------------------------- */

/* `product` is what the step after adds to the gradient of h. */
template <class T, class S>
static __device__ inline void run_cell_back(const struct lath_cuda_lstm_cells_back *g, int64_t sample, int64_t unit,
                                            S product) {
  const int64_t at = sample * g->hidden + unit, gates = 4 * sample * g->hidden + unit;
  const bool known = sample < g->known;
  S dh = known ? product : element<T, S>(g->dhn, at), dc = element<T, S>(known ? g->dc : g->dcn, at);
  if (sample >= g->m) {
    put<T>(g->dh0, at, dh);
    put<T>(g->dc0, at, dc);
    return;
  }
  S gate[4];
#pragma unroll
  for (int i = 0; i < 4; i++) gate[i] = element<T, S>(g->gates, gates + i * g->hidden);
  if (!g->activated) activate<T>(gate, g->bias_in, g->bias, g->hidden, unit);
  const S one = 1, tanh_c = hyperbolic(element<T, S>(g->c, at));
  dh += element<T, S>(g->dy, sample * g->s_dy + unit);
  dc += dh * gate[3] * (one - tanh_c * tanh_c);
  put<T>(g->da, gates, dc * gate[2] * gate[0] * (one - gate[0]));
  put<T>(g->da, gates + g->hidden,
         dc * element<T, S>(sample < g->before ? g->c_before : g->c0, at) * gate[1] * (one - gate[1]));
  put<T>(g->da, gates + 2 * g->hidden, dc * gate[0] * (one - gate[2] * gate[2]));
  put<T>(g->da, gates + 3 * g->hidden, dh * tanh_c * gate[3] * (one - gate[3]));
  put<T>(g->dc, at, dc * gate[1]);
}

/* launch: lstm_cells_back threads=256 shared=0 */
template <class T, int ROWS, int SAMPLES>
static __global__ void __launch_bounds__(THREADS)
    lstm_cells_back(struct product_args g, int64_t samples, struct lath_cuda_lstm_cells_back cells) {
  typedef typename lath_sum_of<T>::type S;
  const struct place at = find_place(&g, SAMPLES);
  S sum[SAMPLES][ROWS];
  multiply<T, ROWS, SAMPLES>(&g, &at, sum);
  for_each_sum<ROWS, SAMPLES>(&g, &at, samples, sum, [&](int64_t sample, int64_t item, const S *value) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (item * ROWS + r < g.n) run_cell_back<T, S>(&cells, sample, item * ROWS + r, value[r]);
  });
}

/* ---- launches -------------------------------------------------------------------------------------------------------------- */

struct shape {
  int samples; /* of a block */
  struct product_args g;
  dim3 grid;
};

/* Blocks with `samples` each; as many warps share an item as there are multiprocessors without a block, and passes along k. */
static void set_shares(struct shape *s, int64_t samples, int multiprocessors) {
  const int64_t tiles = lath_blocks(samples, s->samples);
  int64_t blocks = lath_blocks(s->g.items, WARPS * WARP_ITEMS);
  s->g.shares = 1;
  while (s->g.shares < WARPS && blocks * tiles < multiprocessors && s->g.k >= 2 * s->g.shares * LEAST_SHARE) {
    s->g.shares *= 2;
    blocks = lath_blocks(s->g.items, WARPS / s->g.shares * WARP_ITEMS);
  }
  s->grid = dim3((unsigned)blocks, (unsigned)tiles);
}

static int choose_samples(int64_t samples) { return samples == 1 ? 1 : samples <= 4 ? 4 : 8; }

static struct shape shape_of(const struct lath_cuda_lstm_product *p, int64_t samples, int rows, int of_block,
                             int multiprocessors) {
  struct shape s;
  s.samples = of_block;
  s.g = {p->m, p->k, lath_blocks(p->n, rows), rows, 1, p->n, p->a, p->w, p->s_a, p->s_w, 1};
  set_shares(&s, samples, multiprocessors);
  return s;
}

/* Items of 4 rows and 16 or 8 samples read the least from L2, if there are enough of them to go round. */
static struct shape choose_rows(const struct lath_cuda_lstm_product *p, int64_t samples, int multiprocessors, int *rows) {
  *rows = 4;
  for (int of_block = MOST_SAMPLES; of_block >= LANES && samples > LANES / 2; of_block /= 2) {
    const struct shape s = shape_of(p, samples, *rows, of_block, multiprocessors);
    if (samples > of_block / 2 && (int64_t)s.grid.x * s.grid.y >= multiprocessors) return s;
  }
  *rows = 1;
  return shape_of(p, samples, *rows, choose_samples(samples), multiprocessors);
}

static bool fits(const struct shape *s) { return s->grid.y <= 65535; }

template <class T>
static void launch_project(const struct shape *s, int rows, T *p, int64_t s_p, void *stream) {
  const int kind = rows * 100 + s->samples;
  if (kind == 101) LATH_LAUNCH((lstm_project<T, 1, 1>), s->grid, dim3(THREADS), 0, stream, s->g, p, s_p);
  if (kind == 104) LATH_LAUNCH((lstm_project<T, 1, 4>), s->grid, dim3(THREADS), 0, stream, s->g, p, s_p);
  if (kind == 108) LATH_LAUNCH((lstm_project<T, 1, 8>), s->grid, dim3(THREADS), 0, stream, s->g, p, s_p);
  if (kind == 408) LATH_LAUNCH((lstm_project<T, 4, 8>), s->grid, dim3(THREADS), 0, stream, s->g, p, s_p);
  if (kind == 416) LATH_LAUNCH((lstm_project<T, 4, 16>), s->grid, dim3(THREADS), 0, stream, s->g, p, s_p);
}

extern "C" int lath_cuda_lstm_project(lath_dtype dtype, const struct lath_cuda_lstm_product *product, void *p, int64_t s_p,
                                      int multiprocessors, void *stream) {
  int rows;
  if (product->m == 0 || product->n == 0) return cudaSuccess;
  const struct shape s = choose_rows(product, product->m, multiprocessors, &rows);
  if (!fits(&s)) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) launch_project(&s, rows, static_cast<float *>(p), s_p, stream);
  if (dtype == LATH_F64) launch_project(&s, rows, static_cast<double *>(p), s_p, stream);
  return cudaGetLastError();
}

/* A unit is an item: gates are `hidden` rows apart. */
static struct shape choose_cells(const struct lath_cuda_lstm_product *p, int64_t hidden, int multiprocessors) {
  struct shape s = shape_of(p, p->m, 4, p->m > LANES ? MOST_SAMPLES : choose_samples(p->m), multiprocessors);
  s.g.items = hidden, s.g.s_item = 1, s.g.s_row = hidden;
  set_shares(&s, p->m, multiprocessors);
  if (s.samples < MOST_SAMPLES || (int64_t)s.grid.x * s.grid.y >= multiprocessors) return s;
  s.samples = LANES;
  set_shares(&s, p->m, multiprocessors);
  return s;
}

template <class T>
static void launch_cells(const struct shape *s, const struct lath_cuda_lstm_cells *cells, void *stream) {
  if (s->samples == 1) LATH_LAUNCH((lstm_cells<T, 1>), s->grid, dim3(THREADS), 0, stream, s->g, *cells);
  if (s->samples == 4) LATH_LAUNCH((lstm_cells<T, 4>), s->grid, dim3(THREADS), 0, stream, s->g, *cells);
  if (s->samples == 8) LATH_LAUNCH((lstm_cells<T, 8>), s->grid, dim3(THREADS), 0, stream, s->g, *cells);
  if (s->samples == 16) LATH_LAUNCH((lstm_cells<T, 16>), s->grid, dim3(THREADS), 0, stream, s->g, *cells);
}

extern "C" int lath_cuda_lstm_cells(lath_dtype dtype, const struct lath_cuda_lstm_product *product,
                                    const struct lath_cuda_lstm_cells *cells, int multiprocessors, void *stream) {
  if (product->m == 0) return cudaSuccess;
  const struct shape s = choose_cells(product, cells->hidden, multiprocessors);
  if (!fits(&s)) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) launch_cells<float>(&s, cells, stream);
  if (dtype == LATH_F64) launch_cells<double>(&s, cells, stream);
  return cudaGetLastError();
}

template <class T>
static void launch_back(const struct shape *s, int rows, int64_t samples, const struct lath_cuda_lstm_cells_back *cells,
                        void *stream) {
  const int kind = rows * 100 + s->samples;
  if (kind == 101) LATH_LAUNCH((lstm_cells_back<T, 1, 1>), s->grid, dim3(THREADS), 0, stream, s->g, samples, *cells);
  if (kind == 104) LATH_LAUNCH((lstm_cells_back<T, 1, 4>), s->grid, dim3(THREADS), 0, stream, s->g, samples, *cells);
  if (kind == 108) LATH_LAUNCH((lstm_cells_back<T, 1, 8>), s->grid, dim3(THREADS), 0, stream, s->g, samples, *cells);
  if (kind == 408) LATH_LAUNCH((lstm_cells_back<T, 4, 8>), s->grid, dim3(THREADS), 0, stream, s->g, samples, *cells);
  if (kind == 416) LATH_LAUNCH((lstm_cells_back<T, 4, 16>), s->grid, dim3(THREADS), 0, stream, s->g, samples, *cells);
}

extern "C" int lath_cuda_lstm_cells_back(lath_dtype dtype, const struct lath_cuda_lstm_product *product,
                                         const struct lath_cuda_lstm_cells_back *cells, int multiprocessors, void *stream) {
  const int64_t samples = cells->m > cells->known ? cells->m : cells->known;
  int rows;
  if (samples == 0) return cudaSuccess;
  struct lath_cuda_lstm_product p = *product;
  p.m = cells->known;
  if (cells->known == 0) p.k = 0, p.m = 1, p.a = p.w; /* nothing is read */
  const struct shape s = choose_rows(&p, samples, multiprocessors, &rows);
  if (!fits(&s)) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) launch_back<float>(&s, rows, samples, cells, stream);
  if (dtype == LATH_F64) launch_back<double>(&s, rows, samples, cells, stream);
  return cudaGetLastError();
}
