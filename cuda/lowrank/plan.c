/* SPDX-License-Identifier: Apache-2.0
 * plan.c - which route a low-rank product takes on a GPU: the one with the shortest estimated time.
 *
 * Each route is a few kernels; the time of a kernel is its launch plus the longest of what it moves and what it computes. The
 * rates below are those of an H100-class GPU, from its data sheet and taken at what such kernels commonly reach. NOT MEASURED:
 * no GPU was at hand. docs/cuda.md has the formulas. */
#include "core/blas.h"
#include "core/check.h"
#include "gemm/lt.h"
#include "gemm/product.h"
#include "lowrank/lowrank.h"
#include "lowrank/routes.h"

/* One kernel after another on a stream: about 2 us from the end of one to the first loads of the next. */
#define LAUNCH_NS 2200.0

/* Bytes per nanosecond and multiprocessor: memory 3.35 TB/s over 132, L2 5.5 TB/s over 132. */
#define MEMORY_RATE 25.0
#define CACHE_RATE 40.0

/* Operations (a multiply-add is two) per nanosecond and multiprocessor. Tensor cores 989 TFLOP/s in 16 bits, half of it in
 * TF32; the library reaches two thirds. mma.sync has about 0.6 of the peak, and our loop two thirds of that. Arithmetic units:
 * 67 TFLOP/s. */
#define LIBRARY_16_BIT_RATE 5000.0
#define LIBRARY_TF32_RATE 2500.0
#define LIBRARY_F32_RATE 380.0
#define LIBRARY_F64_RATE 300.0
#define FUSED_RATE 3000.0
#define FEW_RATE 250.0
#define TILED_RATE 150.0

static _Thread_local int forced = -1;

void lath_cuda_force_route(int kernel) { forced = kernel; }
int lath_cuda_forced_route(void) { return forced; }

struct times {
  const struct lath_lowrank_linear *a;
  double multiprocessors, product_rate, bytes; /* of an element */
  int bias_is_free;                            /* added by the kernel of the product that it belongs to */
};

/* ---- operations ---------------------------------------------------------------------------------------------------------- */

static int64_t factored_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->rank * (a->in + a->out);
}

/* Forward: u v, then the dense product. Backward: u v again, dx and dw = dy^T x, then dw v^T and u^T dw. */
static int64_t merged_macs(const struct lath_lowrank_linear *a, int backward) {
  return (backward ? 2 : 1) * a->rows * a->in * a->out + (backward ? 3 : 1) * a->rank * a->in * a->out;
}

/* ---- times, in nanoseconds ----------------------------------------------------------------------------------------------- */

static double longest(double a, double b) { return a > b ? a : b; }

static double product_time(const struct times *t, int64_t m, int64_t n, int64_t k) {
  const double bytes = ((double)m * (double)k + (double)k * (double)n + (double)m * (double)n) * t->bytes;
  const double operations = 2.0 * (double)m * (double)n * (double)k;
  return LAUNCH_NS + longest(bytes / MEMORY_RATE, operations / t->product_rate) / t->multiprocessors;
}

/* cuBLAS without cuBLASLt starts from the bias: the output is written and read once more. */
static double bias_time(const struct times *t, const void *bias, int64_t cols) {
  if (!bias || t->bias_is_free) return 0.0;
  return LAUNCH_NS + 2.0 * (double)t->a->rows * (double)cols * t->bytes / (MEMORY_RATE * t->multiprocessors);
}

static double products_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  return product_time(t, a->rows, a->rank, a->in) + bias_time(t, a->inner_bias, a->rank) +
         product_time(t, a->rows, a->out, a->rank) + bias_time(t, a->bias, a->out);
}

static double merged_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  return product_time(t, a->out, a->in, a->rank) + product_time(t, a->rows, a->out, a->in) + bias_time(t, a->bias, a->out);
}

/* The weights are read once; rows beyond the next power of two cost as much as rows. */
static double few_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  const double numbers = (double)a->rank * (double)(a->in + a->out);
  int64_t rows = 1;
  while (rows < a->rows) rows *= 2;
  return 2.0 * LAUNCH_NS +
         longest(numbers * t->bytes / MEMORY_RATE, 2.0 * (double)rows * numbers / FEW_RATE) / t->multiprocessors;
}

static int64_t padded_rank(int64_t rank) {
  if (rank <= 64) return 64;
  return rank <= 128 ? 128 : 256;
}

/* Blocks come in waves of one per multiprocessor. Each reads its rows from memory and all weights through L2. */
static double fused_time(const struct times *t, const struct lath_fused *f, int tile_rows) {
  const int64_t tiles = lath_blocks(f->rows, tile_rows), shares = lath_fused_shares(f, tile_rows, (int)t->multiprocessors);
  const int64_t waves = lath_blocks(tiles * shares, (int64_t)t->multiprocessors), rank = padded_rank(f->rank);
  const double first = (double)f->k, second = (double)f->n / (double)shares, rows = (double)tile_rows;
  const double block_operations = 2.0 * rows * (double)rank * (first + second);
  const double block_weights = (double)f->rank * (first + second) * t->bytes;
  const double block_rows = rows * (first + second + (f->p ? (double)f->rank : 0.0)) * t->bytes;
  return LAUNCH_NS + (double)waves * longest(longest(block_operations / FUSED_RATE, (block_weights + block_rows) / CACHE_RATE),
                                             block_rows / MEMORY_RATE);
}

/* What differs between the routes of the backward: the gradients of the weights are products in both factored routes. */
static double products_dx_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  return product_time(t, a->rows, a->rank, a->out) + product_time(t, a->rows, a->in, a->rank);
}

static double factors_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  return product_time(t, a->out, a->rank, a->rows) + product_time(t, a->rank, a->in, a->rows);
}

static double merged_backward_time(const struct times *t) {
  const struct lath_lowrank_linear *a = t->a;
  return product_time(t, a->out, a->in, a->rank) + product_time(t, a->rows, a->in, a->out) +
         product_time(t, a->out, a->in, a->rows) + product_time(t, a->out, a->rank, a->in) +
         product_time(t, a->rank, a->in, a->out);
}

/* ---- what each route can do ---------------------------------------------------------------------------------------------- */

struct lath_fused lath_fused_forward(const struct lath_lowrank_linear *a) {
  return (struct lath_fused){.dtype = a->dtype,
                             .rows = a->rows,
                             .k = a->in,
                             .rank = a->rank,
                             .n = a->out,
                             .a = a->x,
                             .s_a = a->s_x,
                             .first = a->v,
                             .s_first = a->s_v,
                             .second = a->u,
                             .s_second = a->s_u,
                             .inner_bias = a->inner_bias,
                             .bias = a->bias,
                             .p = a->p,
                             .c = a->y,
                             .s_c = a->s_y};
}

struct lath_fused lath_fused_dx(const struct lath_lowrank_linear *a, void *dp) {
  return (struct lath_fused){.dtype = a->dtype,
                             .transposed = 1,
                             .rows = a->rows,
                             .k = a->out,
                             .rank = a->rank,
                             .n = a->in,
                             .a = a->dy,
                             .s_a = a->s_dy,
                             .first = a->u,
                             .s_first = a->s_u,
                             .second = a->v,
                             .s_second = a->s_v,
                             .p = dp,
                             .c = a->dx,
                             .s_c = a->s_dx};
}

static int on_16_bytes(const void *data, int64_t stride) { return (uintptr_t)data % 16 == 0 && stride % 8 == 0; }

static int can_fuse(const struct lath_fused *f, int tile_rows, const struct lath_device *device) {
  return lath_is_16_bit(f->dtype) && device->capability >= 80 && f->rank <= LATH_FUSED_RANK && f->rows > 0 && f->k > 0 &&
         f->rank > 0 && f->n > 0 && f->k % 8 == 0 && f->rank % 8 == 0 && f->n % 8 == 0 && on_16_bytes(f->a, f->s_a) &&
         on_16_bytes(f->first, f->s_first) && on_16_bytes(f->second, f->s_second) && on_16_bytes(f->c, f->s_c) &&
         on_16_bytes(f->p, 0) && lath_fused_has_tile(f, tile_rows) &&
         lath_fused_shared_bytes(f, tile_rows) <= device->shared_bytes;
}

static int can_few(const struct lath_lowrank_linear *a, int backward) {
  return !backward && a->rows >= 1 && a->rows <= LATH_FEW_ROWS && a->in > 0 && a->rank > 0 && a->out > 0;
}

/* The gradients that a backward is asked for; a plan without any pointer is about all of them. */
static int wants_dx(const struct lath_lowrank_linear *a) { return a->dx || !(a->dv || a->du || a->d_inner_bias || a->d_bias); }

/* ---- the choice ---------------------------------------------------------------------------------------------------------- */

struct choice {
  lath_lowrank_kernel kernel;
  int tile_rows;
  double time;
};

/* Among forced ones the shortest, too. */
static void consider(struct choice *best, lath_lowrank_kernel kernel, int tile_rows, double time) {
  if ((int)kernel == forced) time -= 1e200;
  if (time < best->time) *best = (struct choice){kernel, tile_rows, time};
}

static void consider_fused(struct choice *best, const struct times *t, const struct lath_device *device,
                           const struct lath_fused *f, double further) {
  for (int tile_rows = 64; tile_rows <= 128; tile_rows += 64)
    if (can_fuse(f, tile_rows, device)) consider(best, LATH_LOWRANK_FUSED, tile_rows, fused_time(t, f, tile_rows) + further);
}

static struct choice choose_forward(const struct times *t, const struct lath_device *device) {
  const struct lath_lowrank_linear *a = t->a;
  const struct lath_fused fused = lath_fused_forward(a);
  struct choice best = {LATH_LOWRANK_PRODUCTS, 0, 1e300};
  if (a->association != LATH_FACTORED && a->dtype != LATH_F64) consider(&best, LATH_LOWRANK_MERGED, 0, merged_time(t));
  if (a->association == LATH_MERGED && a->dtype != LATH_F64) return best;
  consider(&best, LATH_LOWRANK_PRODUCTS, 0, products_time(t));
  consider_fused(&best, t, device, &fused, 0.0);
  if (can_few(a, 0)) consider(&best, LATH_LOWRANK_FEW, 0, few_time(t));
  return best;
}

static struct choice choose_backward(const struct times *t, const struct lath_device *device) {
  const struct lath_lowrank_linear *a = t->a;
  const struct lath_fused fused = lath_fused_dx(a, NULL);
  struct choice best = {LATH_LOWRANK_PRODUCTS, 0, 1e300};
  if (a->association != LATH_FACTORED && a->dtype != LATH_F64) consider(&best, LATH_LOWRANK_MERGED, 0, merged_backward_time(t));
  if (a->association == LATH_MERGED && a->dtype != LATH_F64) return best;
  consider(&best, LATH_LOWRANK_PRODUCTS, 0, products_dx_time(t) + factors_time(t));
  if (wants_dx(a)) consider_fused(&best, t, device, &fused, factors_time(t));
  return best;
}

/* Operations of a product per nanosecond and multiprocessor. The handle tells whether floats may be cut to TF32. */
static double product_rate(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda) {
  if (!lath_cuda_has_blas(cuda)) return TILED_RATE;
  if (lath_is_16_bit(a->dtype)) return LIBRARY_16_BIT_RATE;
  if (a->dtype == LATH_F64) return LIBRARY_F64_RATE;
  return lath_blas_math(cuda->blas) == CUBLAS_TF32_TENSOR_OP_MATH ? LIBRARY_TF32_RATE : LIBRARY_F32_RATE;
}

lath_status lath_cuda_choose(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda, int backward,
                             struct lath_cuda_choice *choice) {
  struct lath_device *device = &choice->device;
  if (lath_device(cuda->device, device)) return LATH_DEVICE_FAILED;
  const struct times times = {.a = a,
                              .multiprocessors = device->multiprocessors,
                              .product_rate = product_rate(a, cuda),
                              .bytes = (double)lath_dtype_size(a->dtype),
                              .bias_is_free = !lath_cuda_has_blas(cuda) || lath_lt_adds_bias(a->dtype, cuda)};
  const struct choice best = backward ? choose_backward(&times, device) : choose_forward(&times, device);
  const int merged = best.kernel == LATH_LOWRANK_MERGED;
  choice->tile_rows = best.tile_rows;
  choice->plan = (struct lath_lowrank_plan){
      .association = merged ? LATH_MERGED : LATH_FACTORED,
      .kernel = best.kernel,
      .macs = merged ? merged_macs(a, backward) : factored_macs(a, backward),
      .dense_macs = (backward ? 2 : 1) * a->rows * a->in * a->out,
      /* Making p again reads x, which is longer than p, and writes and reads p all the same. */
      .save_intermediate = !merged,
  };
  return LATH_OK;
}

lath_status lath_cuda_lowrank_linear_plan(const struct lath_lowrank_linear *a, const struct lath_cuda *cuda, int backward,
                                          struct lath_lowrank_plan *plan) {
  struct lath_cuda_choice choice;
  if (!a || !cuda || !plan || a->association < LATH_AUTO || a->association > LATH_MERGED) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_cuda_check_dtype(a->dtype));
  LATH_TRY(lath_lowrank_check_extents(a));
  LATH_TRY(lath_cuda_choose(a, cuda, backward, &choice));
  *plan = choice.plan;
  return LATH_OK;
}
