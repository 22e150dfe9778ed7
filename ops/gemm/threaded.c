/* SPDX-License-Identifier: Apache-2.0
 * threaded.c - one whole product on the host's threads. */
#include "core/host.h"
#include "gemm/gemm.h"

#define COLUMNS_SHARE 16

static int reads_in_place(const struct lath_gemm *g) {
  return lath_few_rows(g->m, g->n * g->k) && g->b_transposed && g->a_order == LATH_A_ROWS;
}

void lath_gemm_take(struct lath_gemm *g, const struct lath_host *host, struct lath_arena *arena) {
  const struct lath_kernels *kernels = lath_kernels();
  g->workers = lath_host_workers(host, g->m * g->n * g->k);
  if (reads_in_place(g)) {
    g->scratch_size = lath_few_rows_scratch(kernels, g->m, g->k);
  } else {
    g->panels = lath_panels_take(kernels, arena, g->m, g->n, g->k);
    g->scratch_size = lath_product_scratch(kernels);
  }
  g->scratch = lath_take(arena, g->workers, g->scratch_size);
}

static void few_rows(void *arg, int64_t begin, int64_t end) {
  const struct lath_gemm *g = arg;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = lath_share(g->n, COLUMNS_SHARE, w, g->workers),
                  to = lath_share(g->n, COLUMNS_SHARE, w + 1, g->workers);
    lath_multiply_few_rows(lath_kernels(), g->m, to - from, g->k, g->a, g->s_a, g->b + from * g->s_b, g->s_b,
                           g->bias ? g->bias + from : NULL, g->c + from, g->s_c, g->scratch + w * g->scratch_size);
  }
}

static void pack_b(void *arg, int64_t begin, int64_t end) {
  const struct lath_gemm *g = arg;
  const int64_t count = lath_panels_count(&g->panels);
  for (int64_t w = begin; w < end; w++)
    lath_pack(lath_kernels(), &g->panels, count * w / g->workers, count * (w + 1) / g->workers, g->b, g->s_b, g->b_transposed);
}

static void rows_of_c(void *arg, int64_t begin, int64_t end) {
  const struct lath_gemm *g = arg;
  for (int64_t w = begin; w < end; w++) {
    const int64_t from = g->m * w / g->workers, to = g->m * (w + 1) / g->workers;
    const struct lath_product product = {.m = to - from,
                                         .a = g->a_order == LATH_A_ROWS ? g->a + from * g->s_a : g->a + from,
                                         .s_a = g->s_a,
                                         .a_order = g->a_order,
                                         .b = &g->panels,
                                         .bias = g->bias,
                                         .c = g->c + from * g->s_c,
                                         .s_c = g->s_c,
                                         .scratch = g->scratch + w * g->scratch_size};
    lath_multiply(lath_kernels(), &product);
  }
}

lath_status lath_gemm_run(struct lath_gemm *g, const struct lath_host *host) {
  if (reads_in_place(g)) return lath_host_run(host, g->workers, few_rows, g);
  const lath_status status = lath_host_run(host, g->workers, pack_b, g);
  return status == LATH_OK ? lath_host_run(host, g->workers, rows_of_c, g) : status;
}

void lath_gemm_reserve(struct lath_gemm gemm, const struct lath_host *host, struct lath_arena rest, struct lath_arena *arena) {
  lath_gemm_take(&gemm, host, &rest);
  lath_arena_cover(arena, &rest);
}

lath_status lath_gemm_in(struct lath_gemm gemm, const struct lath_host *host, struct lath_arena rest) {
  lath_gemm_take(&gemm, host, &rest);
  return lath_gemm_run(&gemm, host);
}
